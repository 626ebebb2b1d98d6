"""The command line as a shell calls it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from jobs.cli.app import main
from tests.fork_server import FORKS, begin_anew


def slimscope(*words: str, timeout: float = 280) -> CompletedProcess[str]:
    """Runs `slimscope WORDS` in a forked process. What it starts itself are fresh ones."""
    with TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        environment = {**os.environ, "SLIMSCOPE_IDLE_EXIT": "1"}
        process = FORKS.Process(target=run, args=(words, environment, stdout, stderr))
        process.start()
        process.join(timeout)
        assert process.exitcode is not None, f"{words} did not end"
        return CompletedProcess(words, process.exitcode, stdout.read_text(), stderr.read_text())


def run(words: tuple[str, ...], environment: Mapping[str, str], stdout: Path, stderr: Path) -> None:
    """The life of the forked process."""
    begin_anew(environment, stdout, stderr)
    sys.argv = ["slimscope", *words]
    main()
