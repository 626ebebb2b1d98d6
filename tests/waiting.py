"""Waiting until something holds."""

import inspect
import time
from collections.abc import Callable

LIMIT_S = 20.0


def until(
    holds: Callable[[], object], within_s: float = LIMIT_S, meanwhile: Callable[[], object] = bool
) -> None:
    """Ask until it holds, and fail with the source of `holds` after the limit.

    Args:
        meanwhile: called between two questions.
    """
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {within_s:g} s for {awaited(holds)}"
        meanwhile()
        time.sleep(0.02)


def awaited(holds: Callable[[], object]) -> str:
    """The source of a condition, or its name."""
    try:
        return inspect.getsource(holds).strip()
    except (OSError, TypeError):
        return repr(holds)
