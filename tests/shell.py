"""The command line as a shell calls it."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from backend.queue import launcher
from jobs.cli.app import main
from tests.fork_engine import fork_all
from tests.fork_server import FORKS, begin_anew


def slimscope(
    *words: str,
    timeout: float = 280,
    meanwhile: Callable[[], object] | None = None,
    forks: bool = False,
) -> CompletedProcess[str]:
    """Runs `slimscope WORDS` in a forked process, which wakes no supervisor.

    Args:
        meanwhile: called again and again until it has ended.
        forks: it wakes one; what it starts are forks, too, whose end it waits for.
    """
    with TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        environment = {**os.environ, "SLIMSCOPE_IDLE_EXIT": "1"}
        process = FORKS.Process(target=run, args=(words, environment, stdout, stderr, forks))
        process.start()
        deadline = time.monotonic() + timeout
        while meanwhile and process.is_alive() and time.monotonic() < deadline:
            meanwhile()
            process.join(0.05)
        process.join(max(0.0, deadline - time.monotonic()))
        assert process.exitcode is not None, f"{words} did not end"
        return CompletedProcess(words, process.exitcode, stdout.read_text(), stderr.read_text())


def run(
    words: tuple[str, ...], environment: Mapping[str, str], stdout: Path, stderr: Path, forks: bool
) -> None:
    """The life of the forked process."""
    begin_anew(environment, stdout, stderr)
    if forks:
        fork_all()
    else:
        launcher.start_module = lambda *_: None
    sys.argv = ["slimscope", *words]
    main()
