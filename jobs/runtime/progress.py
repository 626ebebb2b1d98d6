"""One progress bar for a job of several phases, each as wide as its share of the work."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.runtime.context import JobContext


class Phases:
    """Hands each phase a reporter that fills its part of the job's progress.

    Args:
        weights: phase name -> work in any unit, in the order they run.
    """

    def __init__(self, context: JobContext, weights: Mapping[str, float]) -> None:
        self.context, self.weights = context, weights

    def phase(self, name: str, part: int = 0, parts: int = 1) -> Phase:
        """The reporter of phase `name`, or of its `part`th of `parts` equal parts."""
        names = list(self.weights)
        before = sum(self.weights[n] for n in names[: names.index(name)])
        whole, width = sum(self.weights.values()), self.weights[name] / parts
        until = (before + self.weights[name]) / whole
        return Phase(self.context, (before + part * width) / whole, width / whole, until)


class Phase:
    """A reporter that fills the job's progress from `start` to `start + width`, both in 0..1, of a
    phase that ends at `until`."""

    def __init__(self, context: JobContext, start: float, width: float, until: float) -> None:
        self._context, self._start, self._width = context, start, width
        self._until = until
        self.metric, self.log = context.metric, context.log
        self.snapshot, self.profile = context.snapshot, context.profile
        self.should_stop = context.should_stop

    def part(self, number: int, parts: int) -> Phase:
        """The reporter of the `number`th of `parts` equal parts of this phase."""
        width = self._width / parts
        return Phase(self._context, self._start + number * width, width, self._until)

    def progress(self, done: float, total: float, stage: str) -> None:
        share = done / total if total else 1.0
        self._context.progress(self._start + self._width * share, 1.0, stage, self._until)
