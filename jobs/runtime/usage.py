"""What a job's processes take of the machine while they work, as curves, and the most they may."""

import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from backend.metric_key import MetricKey
from backend.store.session import now_ms
from jobs.metrics import MEMORY, PROCESSOR

EVERY = 0.01  # of the time since the run began passes between two points
LEAST_S = 1.0  # between two points
MB = 1e6


class UsageSampler:
    """Samples this process, and those that train with it, the less often the longer the run takes:
    some 400 points in an hour. `began`: when the run began, in all its attempts, UTC milliseconds.
    `record`: (key, value, seconds since the run began) -> a point of a curve."""

    def __init__(self, began: int, record: Callable[[MetricKey, float, int], None]) -> None:
        self._began, self._record = began, record
        self._processes = list[psutil.Process]()
        self._lock = threading.Lock()  # one thread includes, another samples
        self._last = time.monotonic()
        self.include(None)

    def include(self, *pids: int | None) -> None:
        """Sample these processes, too; None: this one."""
        with self._lock, suppress(psutil.Error):
            for process in map(psutil.Process, pids):
                process.cpu_percent()  # the first call begins to count
                self._processes.append(process)

    def sample(self) -> None:
        """Record where the processes stand together, if it is time to."""
        seconds = (now_ms() - self._began) / 1000
        if time.monotonic() - self._last < max(LEAST_S, EVERY * seconds):
            return
        self._last = time.monotonic()
        with self._lock, suppress(psutil.Error):
            self._processes = [each for each in self._processes if each.is_running()]
            held = sum(each.memory_info().rss for each in self._processes)
            used = sum(each.cpu_percent() for each in self._processes)
            self._record(MEMORY, held / MB, round(seconds))
            self._record(PROCESSOR, used, round(seconds))


def limit_memory(gigabytes: float) -> None:
    """Let allocations beyond this fail, so that the run ends with a reason instead of the machine
    running out. Counts what is private to the process, not mapped files; 0: no limit."""
    if gigabytes:
        most = int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
