"""What a job's process takes of the machine while it works: memory and processor, as curves."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from backend.store.session import now_ms
from jobs.metrics import MEMORY, PROCESSOR

EVERY = 0.01  # of the time since the run began passes between two points
MB = 1e6


class UsageSampler:
    """Samples this process, the less often the longer the run takes: some 400 points in an hour.

    Args:
        began: when the run began, in all its attempts, UTC milliseconds.
        record: (name, value, seconds since the run began) -> a point of a curve.
        least: seconds between two points at least.
    """

    def __init__(
        self, began: int, record: Callable[[str, float, int], None], least: float = 1.0
    ) -> None:
        self._began, self._record, self._least = began, record, least
        self._process = psutil.Process()
        self._last = time.monotonic()
        self._process.cpu_percent()  # the first call begins to count

    def sample(self) -> None:
        """Record where the process stands, if it is time to."""
        seconds = (now_ms() - self._began) / 1000
        if time.monotonic() - self._last < max(self._least, EVERY * seconds):
            return
        self._last = time.monotonic()
        with suppress(psutil.Error):
            self._record(MEMORY, self._process.memory_info().rss / MB, round(seconds))
            self._record(PROCESSOR, self._process.cpu_percent(), round(seconds))
