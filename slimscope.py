"""The command `slimscope`. Our packages have common names, so this module checks that no other
package shadows them, and reports one that does in a single line."""

from __future__ import annotations

import gc
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ("backend", "jobs", "ui")


def main() -> None:
    """Run the console script."""
    if problem := shadowed_package():
        sys.exit(f"slimscope: {problem}")
    gc.disable()  # saves a quarter of the time of `slimscope list`, as in `jobs.kind.load_work`
    from jobs.cli.app import main as command_line

    gc.freeze()
    gc.enable()
    command_line()


def shadowed_package() -> str:
    """Return which package is not ours and what to do, or "" if all are ours."""
    for name in PACKAGES:
        spec = find_spec(name)
        origin = spec.origin if spec else None
        if origin is None or Path(origin).resolve().parent != HERE / name:
            return (
                f"the Python package {name!r} is not Slimscope's but {origin or 'missing'}. "
                "Install Slimscope on its own (pipx install slimscope, or uv tool install "
                "slimscope), and leave PYTHONPATH unset."
            )
    return ""


if __name__ == "__main__":
    main()
