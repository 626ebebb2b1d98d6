"""Runs on the stand-in accelerator, in a process that ends with the test."""

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from backend.settings import settings
from backend.store.session import engine_for
from jobs.cli.doctor.methods import METHODS, run_methods
from tests.accelerator import device
from tests.fork_server import elsewhere

OUTPUT = "output.txt"  # in the data folder


def begin(folder: str) -> None:
    """Give this process the accelerator and a data folder of its own, which receives its output."""
    device.install()
    os.environ |= {"SLIMSCOPE_DATA_DIR": folder, "SLIMSCOPE_EXAMPLES": "0"}
    settings.cache_clear()
    engine_for.cache_clear()
    log = os.open(Path(folder) / OUTPUT, os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())


def _run(folder: str, kinds: Collection[str], memory_bytes: int) -> list[dict[str, Any]]:
    device.MEMORY_BYTES = memory_bytes
    begin(folder)
    return [vars(check) for check in run_methods([x for x in METHODS if x.kind in kinds])]


def trials(
    folder: Path, kinds: Collection[str], memory_bytes: int = device.MEMORY_BYTES
) -> dict[str, dict[str, Any]]:
    """Run the methods of some kinds as `slimscope doctor --gpu` does. Return kind -> its check."""
    checks = {x["name"]: x for x in elsewhere(_run, str(folder), kinds, memory_bytes)}
    assert not [*folder.rglob("supervisor.log")]  # nobody else launches the runs
    return {x.kind: checks[x.title] for x in METHODS if x.kind in kinds}


def assert_equal_figures(check: dict[str, Any]) -> None:
    """Require a run that ended on the accelerator with the figures of the CPU."""
    assert check["ok"], check["text"]
    assert "deviates by" in check["text"]
