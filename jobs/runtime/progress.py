"""Progress of a job over weighted phases, its remaining time, and its use of memory and
processor."""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

from backend.metric_key import MetricKey
from backend.reporter import REPLAY, Reporter
from backend.store.session import now_ms
from jobs.metrics import MEMORY, PROCESSOR

MIN_PHASE_S = 15.0  # before the pace of a phase is used
MAX_SMOOTHING_S = 30.0  # time constant
EQUAL_TRUST_SHARE = 0.05  # share of work done at which pace and estimate count equally
SAMPLE_SHARE = 0.01  # sampling interval as a share of the elapsed time
MIN_SAMPLE_S = 1.0
MB = 1e6


class Progress:
    """Share of work done and remaining seconds of a job.

    The pace predicts the rest of the current phase from the phase's pace and later phases from the
    job's pace. Work replayed from checkpoints is excluded. Early steps are a poor sample, so the
    estimate from submission is mixed in: with a share s of the work done,

        ln left = w ln(left by pace) + (1 - w) ln(left by estimate),   w = s / (s +
        `EQUAL_TRUST_SHARE`)

    This value jumps between phases of different pace, so the reported value is smoothed.

    Args:
        expected_s: estimated seconds of the whole job; None if unknown.
    """

    def __init__(self, expected_s: float | None = None) -> None:
        self.expected_s = expected_s
        self._done = self._total = self._phase_end = 0.0
        self._stage = "starting"
        self._job_start = self._phase_start = (0.0, math.inf)  # (seconds, work done)
        self._end: tuple[float, float] | None = None  # (time of the last estimate, reported end)
        self._logged_line = ""

    @property
    def is_under_way(self) -> bool:
        """True once some work is done."""
        return self._done > 0

    def report(self, done: float, total: float, stage: str, phase_end: float) -> None:
        now = (time.monotonic(), done)
        if stage == REPLAY or done < self._job_start[1]:  # replayed work has another pace
            self._job_start, self._phase_start, self._end = now, now, None
        elif phase_end != self._phase_end:
            self._phase_start = now
        self._done, self._total, self._stage, self._phase_end = done, total, stage, phase_end

    def log_line(self) -> str:
        """Return the progress as a line for the log, or "" if it has not changed since the last
        call."""
        line = f"{100 * self._done / (self._total or 1.0):.0f} %: {self._stage}."
        previous, self._logged_line = self._logged_line, line
        return line if self.is_under_way and line != previous else ""

    def columns(self) -> dict[str, Any]:
        """Return the progress columns of the job row."""
        return {
            "done": self._done,
            "total": self._total,
            "stage": self._stage,
            "eta_s": self._eta(),
            "peak_bytes": accelerator_peak() or peak_memory(),
        }

    def _eta(self) -> float | None:
        left, now = self._left(), time.monotonic()
        if left is None:
            return None
        since, end = self._end or (now, now + left)
        smoothing_s = max(
            MIN_SAMPLE_S, min(MAX_SMOOTHING_S, left / 4)
        )  # less smoothing near the end
        end += (1 - math.exp((since - now) / smoothing_s)) * (now + left - end)
        self._end = now, end
        return max(0.0, end - now)

    def _left(self) -> float | None:
        by_pace, total = self._left_by_pace(), self._total or 1.0
        if self.expected_s is None:
            return by_pace
        estimated = self.expected_s * (1 - self._done / total)
        if not by_pace or estimated <= 0:
            return estimated if by_pace is None else by_pace
        share = (self._done - self._job_start[1]) / total
        weight = share / (share + EQUAL_TRUST_SHARE)
        return math.exp(weight * math.log(by_pace) + (1 - weight) * math.log(estimated))

    def _left_by_pace(self) -> float | None:
        overall = self._pace(self._job_start)
        if overall is None:
            return None
        is_settled = time.monotonic() - self._phase_start[0] > MIN_PHASE_S
        in_phase = (self._pace(self._phase_start) if is_settled else None) or overall
        return in_phase * (self._phase_end - self._done) + overall * (self._total - self._phase_end)

    def _pace(self, start: tuple[float, float]) -> float | None:
        """Return seconds per unit of work since `start`, or None before any is done."""
        seconds, done = start
        return (time.monotonic() - seconds) / (self._done - done) if self._done > done else None


def accelerator_peak() -> int:
    """Return the peak memory of this process on the accelerator in bytes; 0 if it uses none."""
    devices = sys.modules.get("backend.models.devices")  # imports torch, as this module must not
    return int(devices.peak_memory()) if devices else 0


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes. On Linux `getrusage` is not used:
    it starts at the parent's peak."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return 1024 * next(peaks, 0)


class JobReporter(Reporter, Protocol):
    """A reporter that also receives the end of the current phase."""

    def progress(
        self, done: float, total: float, stage: str, phase_end: float | None = None
    ) -> None:
        """Report `done` of `total` units finished; the current phase ends at `phase_end` units."""


class Phases:
    """Reporters of a job's phases, each covering its share of the progress. `weights`: work of each
    phase in any unit, in execution order."""

    def __init__(self, reporter: JobReporter, weights: Mapping[str, float]) -> None:
        self.reporter, self.weights = reporter, weights

    def phase(self, name: str, part: int = 0, parts: int = 1) -> "Phase":
        """Return the reporter of phase `name`, or of its `part`th of `parts` equal parts."""
        names = list(self.weights)
        before = sum(self.weights[n] for n in names[: names.index(name)])
        total, width = sum(self.weights.values()), self.weights[name] / parts
        phase_end = (before + self.weights[name]) / total
        return Phase(self.reporter, (before + part * width) / total, width / total, phase_end)


class Phase:
    """A reporter that covers the job's progress from `start` to `start + width` (both in 0..1) in a
    phase that ends at `phase_end`."""

    def __init__(self, reporter: JobReporter, start: float, width: float, phase_end: float) -> None:
        self._reporter, self._start, self._width = reporter, start, width
        self._phase_end = phase_end
        self.metric, self.log = reporter.metric, reporter.log
        self.snapshot, self.profile = reporter.snapshot, reporter.profile
        self.should_stop = reporter.should_stop

    def part(self, number: int, parts: int) -> "Phase":
        """Return the reporter of the `number`th of `parts` equal parts of this phase."""
        width = self._width / parts
        return Phase(self._reporter, self._start + number * width, width, self._phase_end)

    def progress(self, done: float, total: float, stage: str) -> None:
        share = done / total if total else 1.0
        self._reporter.progress(self._start + self._width * share, 1.0, stage, self._phase_end)


class UsageSampler:
    """Samples memory and processor use, less often as the run gets longer (about 400 points in an
    hour).

    Args:
        began: start of the run's first attempt, UTC milliseconds.
        record: called with (key, value, seconds since `began`).
    """

    def __init__(self, began: int, record: Callable[[MetricKey, float, int], None]) -> None:
        self._began, self._record = began, record
        self._process = psutil.Process()
        self._last = time.monotonic()
        self._process.cpu_percent()  # the first call starts the measurement

    def sample(self) -> None:
        """Record a sample if one is due."""
        seconds = (now_ms() - self._began) / 1000
        if time.monotonic() - self._last < max(MIN_SAMPLE_S, SAMPLE_SHARE * seconds):
            return
        self._last = time.monotonic()
        self._record(MEMORY, self._process.memory_info().rss / MB, round(seconds))
        self._record(PROCESSOR, self._process.cpu_percent(), round(seconds))


def limit_memory(gigabytes: float) -> None:
    """Make allocations beyond the limit fail, so that the run fails with a reason before the
    machine runs out of memory. Counts private memory, not mapped files; 0: no limit."""
    if gigabytes:
        limit = int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
