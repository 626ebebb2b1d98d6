"""The interface through which a method reports to its caller (a job, a notebook, a test). A method
takes a model, tensors and a config; it does not know the database, the queue or the user
interface."""

from typing import Protocol

from backend.errors import CancelledError
from backend.metric_key import MetricKey
from backend.statistics.tensors import TensorProfile, TensorSnapshot

REPLAY = "Reading stored results"  # shown while replaying the work of an earlier attempt


def at_block(block: int, blocks: int, activity: str = "") -> str:
    """Describe an activity at one decoder block: "Re-dense, block 3 of 30". `block` counts from
    0."""
    return f"{f'{activity}, b' if activity else 'B'}lock {block + 1} of {blocks}"


class Reporter(Protocol):
    """Receives what a method reports while it runs."""

    def progress(self, done: float, total: float, stage: str) -> None:
        """Report that `done` of `total` units of work are finished, and name the current
        activity."""

    def metric(self, key: MetricKey, value: float, step: int) -> None:
        """Record a point of a curve; `key.axis` is the unit of `step`."""

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        """Record the statistics and the histogram of one tensor at one stage."""

    def profile(self, profile: TensorProfile) -> None:
        """Record one value per channel or group of one tensor at one stage."""

    def log(self, text: str) -> None:
        """Write one line to the log of the run."""

    def should_stop(self) -> bool:
        """Return True if cancellation was requested. Called at every safe point."""


class SilentReporter:
    """Discards all reports and never cancels, for tests and library use."""

    def progress(self, done: float, total: float, stage: str) -> None:
        pass

    def metric(self, key: MetricKey, value: float, step: int) -> None:
        pass

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        pass

    def profile(self, profile: TensorProfile) -> None:
        pass

    def log(self, text: str) -> None:
        pass

    def should_stop(self) -> bool:
        return False


def stop_if_asked(reporter: Reporter) -> None:
    """Raise `CancelledError` if cancellation was requested. Call it where no work is lost."""
    if reporter.should_stop():
        raise CancelledError
