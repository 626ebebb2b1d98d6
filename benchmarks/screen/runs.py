"""Real runs on the toy model, carried out in a folder of their own as people would start them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.screen.server import ROOT, environment

SDS = ("sds", "--model=toy", "--preset=quick look")


def carry_out(data: Path, asked: Iterable[Sequence[str]]) -> None:
    """Carries out runs one after the other: `slimscope submit …` for each."""
    for words in asked:
        line = [sys.executable, "-m", "jobs", "submit", *words, "--wait", "--json"]
        ended = subprocess.run(
            line, cwd=ROOT, env=environment(data), capture_output=True, text=True
        )
        if ended.returncode:
            sys.exit(f"{' '.join(words)} failed: {ended.stdout}{ended.stderr}")
