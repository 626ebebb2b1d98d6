"""How a method reports to its caller: a job, a notebook, a test. A method takes a model, tensors
and a config; it knows no database, no queue and no screen."""

import re
from typing import Protocol

from backend.errors import CancelledError
from backend.metric_key import MetricKey
from backend.statistics.tensors import TensorProfile, TensorSnapshot

REPLAY = "Reading what is stored"  # shown while replaying the work of an earlier attempt


BLOCK = re.compile(r"(?:.*, b|B)lock (\d+) of (\d+)")


def at_block(block: int, blocks: int, activity: str = "") -> str:
    """An activity that goes through the decoder blocks: "Re-dense, block 3 of 30". `block`: from
    0."""
    return f"{f'{activity}, b' if activity else 'B'}lock {block + 1} of {blocks}"


def block_reached(activity: str) -> tuple[int, int] | None:
    """The block such an activity has reached, from 1, and how many there are; None for others."""
    found = BLOCK.fullmatch(activity)
    return (int(found[1]), int(found[2])) if found else None


class Reporter(Protocol):
    """Receives what a method reports while it runs."""

    def progress(self, done: float, total: float, stage: str) -> None:
        """Report that `done` of `total` units of work are finished, and the current activity."""

    def metric(self, key: MetricKey, value: float, step: int) -> None:
        """Record a point of a curve; the key says what `step` counts."""

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        """The statistics and the histogram of one tensor at one stage."""

    def profile(self, profile: TensorProfile) -> None:
        """One figure for each channel or group of one tensor at one stage."""

    def log(self, text: str) -> None:
        """Write one line to the log of the run."""

    def should_stop(self) -> bool:
        """Whether cancellation was requested; checked at every safe point."""


class SilentReporter:
    """Discards all reports and never cancels: for tests and use as a library."""

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
    """Raise `CancelledError` if cancellation was requested. Call it where no work would be lost."""
    if reporter.should_stop():
        raise CancelledError
