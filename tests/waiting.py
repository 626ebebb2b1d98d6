"""Waiting until something holds."""

import time
from collections.abc import Callable


def until(
    holds: Callable[[], object], within_s: float = 60.0, meanwhile: Callable[[], object] = bool
) -> None:
    """Asks again and again, and fails when that takes too long; `meanwhile` is called between."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be"
        meanwhile()
        time.sleep(0.05)
