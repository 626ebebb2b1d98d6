"""How a method talks to whoever runs it: a job, a notebook, a test.

A method takes a model, tensors and a config, and reports through a `Reporter`. It knows no
database, no queue and no screen.
"""

from __future__ import annotations

from typing import Protocol

from backend.errors import CancelledError
from backend.statistics.tensors import TensorProfile, TensorSnapshot

REPLAY = "Reading what is stored"  # the stage of work that an earlier attempt has done


class Reporter(Protocol):
    """What a method may say while it works."""

    def progress(self, done: float, total: float, stage: str) -> None:
        """`done` of `total` units of work are finished; `stage` says in words what goes on."""

    def metric(self, name: str, value: float, step: int) -> None:
        """One point of a curve: `name` at `step`."""

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        """The statistics and the histogram of one tensor at one stage."""

    def profile(self, profile: TensorProfile) -> None:
        """One figure for each channel or group of one tensor at one stage."""

    def log(self, text: str) -> None:
        """One line for the run's log."""

    def should_stop(self) -> bool:
        """Whether someone asked this work to end; asked at every safe point."""


class SilentReporter:
    """Says nothing and never stops: for tests and for use as a library."""

    def progress(self, done: float, total: float, stage: str) -> None:
        pass

    def metric(self, name: str, value: float, step: int) -> None:
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
    """Raises `CancelledError` when a stop was asked for. Call it where nothing would be lost."""
    if reporter.should_stop():
        raise CancelledError
