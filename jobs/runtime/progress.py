"""Progress of a job: one bar over several phases, each as wide as its share of the work, and the
time that is left; and what its process takes of the machine while it works, as curves, and the
most it may."""

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

SETTLED_S = 15.0  # in a phase, before its own pace is used
DAMPED_S = 30.0  # time constant of that smoothing, at most
HALF_TRUSTED = 0.05  # of the work done: the pace then counts as much as the estimate
EVERY = 0.01  # of the time since the run began passes between two points
LEAST_S = 1.0  # between two points
MB = 1e6


class Progress:
    """How far the job is, and the seconds left.

    By pace: the rest of a phase at the pace of the phase, the later ones at that of the job. Work
    replayed from checkpoints does not count for the pace. The first steps of a run say little, so
    the estimate made beforehand counts until the pace is known better: with a share s of the work
    done,

        ln left = w ln(by pace) + (1 - w) ln(by estimate),   w = s / (s + `HALF_TRUSTED`)

    This estimate jumps where phases differ in pace, so what is reported is smoothed toward it.

    Args:
        expected_s: seconds the whole job was estimated to take; None if that is not known.
    """

    def __init__(self, expected_s: float | None = None) -> None:
        self.expected_s = expected_s
        self._done = self._total = self._phase_end = 0.0
        self._stage = "starting"
        self._job_start = self._phase_start = (0.0, math.inf)  # seconds, done
        self._end: tuple[float, float] | None = None  # time of the last estimate, reported end
        self._told = ""

    @property
    def is_under_way(self) -> bool:
        """Whether something is done."""
        return self._done > 0

    def report(self, done: float, total: float, stage: str, phase_end: float) -> None:
        now = (time.monotonic(), done)
        if stage == REPLAY or done < self._job_start[1]:  # says nothing of the pace
            self._job_start, self._phase_start, self._end = now, now, None
        elif phase_end != self._phase_end:
            self._phase_start = now
        self._done, self._total, self._stage, self._phase_end = done, total, stage, phase_end

    def news(self) -> str:
        """How far it is, as a line of the log; empty where nothing has moved since it was asked."""
        line = f"{100 * self._done / (self._total or 1.0):.0f} %: {self._stage}."
        before, self._told = self._told, line
        return line if self.is_under_way and line != before else ""

    def columns(self) -> dict[str, Any]:
        """The columns of the job row."""
        return {
            "done": self._done,
            "total": self._total,
            "stage": self._stage,
            "eta_s": self._eta(),
            "peak_bytes": peak_memory(),
        }

    def _eta(self) -> float | None:
        left, now = self._left(), time.monotonic()
        if left is None:
            return None
        since, end = self._end or (now, now + left)
        damped = max(LEAST_S, min(DAMPED_S, left / 4))  # near the end the estimate counts
        end += (1 - math.exp((since - now) / damped)) * (now + left - end)
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
        weight = share / (share + HALF_TRUSTED)
        return math.exp(weight * math.log(by_pace) + (1 - weight) * math.log(estimated))

    def _left_by_pace(self) -> float | None:
        overall = self._pace(self._job_start)
        if overall is None:
            return None
        known = time.monotonic() - self._phase_start[0] > SETTLED_S
        here = (self._pace(self._phase_start) if known else None) or overall
        return here * (self._phase_end - self._done) + overall * (self._total - self._phase_end)

    def _pace(self, start: tuple[float, float]) -> float | None:
        """Seconds per unit since `start`; None before one is done."""
        seconds, done = start
        return (time.monotonic() - seconds) / (self._done - done) if self._done > done else None


def peak_memory() -> int:
    """The most bytes this process has held in memory. On Linux not by `getrusage`, whose peak
    begins with that of the parent."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return 1024 * next(peaks, 0)


class JobReporter(Reporter, Protocol):
    """A reporter that also knows where the phase it is in ends."""

    def progress(
        self, done: float, total: float, stage: str, phase_end: float | None = None
    ) -> None:
        """`done` of `total` units are finished; the phase ends at `phase_end` of them."""


class Phases:
    """The reporters of a job's phases, each filling its part of the progress. `weights`: phase ->
    work in any unit, in the order they run."""

    def __init__(self, reporter: JobReporter, weights: Mapping[str, float]) -> None:
        self.reporter, self.weights = reporter, weights

    def phase(self, name: str, part: int = 0, parts: int = 1) -> "Phase":
        """The reporter of phase `name`, or of its `part`th of `parts` equal parts."""
        names = list(self.weights)
        before = sum(self.weights[n] for n in names[: names.index(name)])
        whole, width = sum(self.weights.values()), self.weights[name] / parts
        phase_end = (before + self.weights[name]) / whole
        return Phase(self.reporter, (before + part * width) / whole, width / whole, phase_end)


class Phase:
    """A reporter that fills the job's progress from `start` to `start + width`, both in 0..1, of a
    phase that ends at `phase_end`."""

    def __init__(self, reporter: JobReporter, start: float, width: float, phase_end: float) -> None:
        self._reporter, self._start, self._width = reporter, start, width
        self._phase_end = phase_end
        self.metric, self.log = reporter.metric, reporter.log
        self.snapshot, self.profile = reporter.snapshot, reporter.profile
        self.should_stop = reporter.should_stop

    def part(self, number: int, parts: int) -> "Phase":
        """The reporter of the `number`th of `parts` equal parts of this phase."""
        width = self._width / parts
        return Phase(self._reporter, self._start + number * width, width, self._phase_end)

    def progress(self, done: float, total: float, stage: str) -> None:
        share = done / total if total else 1.0
        self._reporter.progress(self._start + self._width * share, 1.0, stage, self._phase_end)


class UsageSampler:
    """Samples this process, the less often the longer the run takes: some 400 points in an hour.
    `began`: when the run began, in all its attempts, UTC milliseconds. `record`: (key, value,
    seconds since the run began) -> a point of a curve."""

    def __init__(self, began: int, record: Callable[[MetricKey, float, int], None]) -> None:
        self._began, self._record = began, record
        self._process = psutil.Process()
        self._last = time.monotonic()
        self._process.cpu_percent()  # the first call begins to count

    def sample(self) -> None:
        """Record what the process takes, if it is time to."""
        seconds = (now_ms() - self._began) / 1000
        if time.monotonic() - self._last < max(LEAST_S, EVERY * seconds):
            return
        self._last = time.monotonic()
        self._record(MEMORY, self._process.memory_info().rss / MB, round(seconds))
        self._record(PROCESSOR, self._process.cpu_percent(), round(seconds))


def limit_memory(gigabytes: float) -> None:
    """Let allocations beyond this fail, so that the run ends with a reason instead of the machine
    running out. Counts what is private to the process, not mapped files; 0: no limit."""
    if gigabytes:
        most = int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
