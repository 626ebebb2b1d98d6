"""The command `slimscope`. The packages it needs have common names: where another package hides one
of them, that is said in one line."""

from __future__ import annotations

import gc
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ("backend", "jobs", "ui")


def main() -> None:
    """The console script."""
    if found := foreign():
        sys.exit(f"slimscope: {found}")
    gc.disable()  # as `jobs.kind.load_work` does: a quarter of the time of `slimscope list`
    from jobs.cli.app import main as command_line

    gc.freeze()
    gc.enable()
    command_line()


def foreign() -> str:
    """Which package is not ours, and what to do; empty where all are."""
    for name in PACKAGES:
        spec = find_spec(name)
        place = spec.origin if spec else None
        if place is None or Path(place).resolve().parent != HERE / name:
            return (
                f"the Python package {name!r} is not Slimscope's but {place or 'missing'}. "
                "Install Slimscope on its own (pipx install slimscope, or uv tool install "
                "slimscope), and leave PYTHONPATH unset."
            )
    return ""


if __name__ == "__main__":
    main()
