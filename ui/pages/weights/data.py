"""What is looked at, read from the database: one query for each question a view asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from backend.statistics.names import MAGNITUDES
from backend.statistics.tensors import TensorProfile, TensorSnapshot
from backend.store import queries
from ui.charts.series import Series
from ui.pages.weights.selection import RunWeights, WeightsSelection, weights_of
from ui.theme import LineStyle, stage_style

OTHER_DASH = {"solid": "dash", "dot": "dashdot"}  # of the run that is compared with


@dataclass(frozen=True)
class TensorView:
    """A settled choice, and the runs it is about."""

    choice: WeightsSelection
    weights: RunWeights
    other: RunWeights | None

    @classmethod
    def at(cls, asked: WeightsSelection) -> TensorView | None:
        """The choice settled on what there is; None where the run has no statistics."""
        weights = weights_of(asked.run)
        if weights is None:
            return None
        other = weights_of(asked.vs) if asked.vs != weights.job.run else None
        return cls(asked.settled(weights, other), weights, other)

    # one tensor ------------------------------------------------------------------------------

    @cached_property
    def snapshots(self) -> dict[str, TensorSnapshot]:
        """The tensor at each stage of the run, in order; of several steps the last."""
        return _by_stage(
            queries.tensor_snapshots(self.weights.job.id, self.choice.tensor), self.weights
        )

    @cached_property
    def theirs(self) -> dict[str, TensorSnapshot]:
        """The same tensor in the other run; empty where there is none."""
        if self.other is None or self.choice.tensor not in self.other.tensors:
            return {}
        return _by_stage(
            queries.tensor_snapshots(self.other.job.id, self.choice.tensor), self.other
        )

    def series(self, *, magnitudes: bool = False) -> list[Series]:
        """What is drawn: the chosen stages of the run, then those of the other run."""
        own = [s for s in self.choice.show if s in self.snapshots]
        others = [s for s in self.choice.show if s in self.theirs]
        held, held_there = (
            ({}, {})
            if not magnitudes
            else (self._magnitudes(self.weights), self._magnitudes(self.other))
        )
        return [self.one(stage, magnitudes=held.get(stage)) for stage in own] + [
            self.one(stage, there=True, magnitudes=held_there.get(stage)) for stage in others
        ]

    def one(
        self, stage: str, *, there: bool = False, magnitudes: TensorProfile | None = None
    ) -> Series:
        """One stage of the run, or of the other run."""
        taken = (self.theirs if there else self.snapshots)[stage]
        return Series(
            taken,
            self.label(stage, there),
            other_stroke(stage) if there else stage_style(stage),
            None if magnitudes is None else magnitudes.values,
        )

    def label(self, stage: str, there: bool = False) -> str:
        """The stage, with its run where two are drawn."""
        run = self.other if there else self.weights
        assert run is not None
        label = run.labels.get(stage, stage)
        return f"{label}, {run.job.run}" if self.other else label

    def _magnitudes(self, run: RunWeights | None) -> dict[str, TensorProfile]:
        return self.profiles(run, MAGNITUDES)

    def profiles(self, run: RunWeights | None, name: str) -> dict[str, TensorProfile]:
        """Stage -> one profile of the tensor, of several steps the last."""
        if run is None or self.choice.tensor not in run.tensors:
            return {}
        return {p.stage: p for p in queries.profiles(run.job.id, self.choice.tensor, name)}

    def apart(self) -> str:
        """In words: why the two runs cannot be compared here, or with what care; often nothing."""
        other, choice = self.other, self.choice
        if other is None:
            return ""
        name = other.job.run
        if choice.tensor not in other.tensors:
            model = f", which is of {other.model}" if other.model != self.weights.model else ""
            return f"There is no {choice.tensor} in {name}{model}."
        missing = [self.weights.labels[s] for s in choice.show if s not in self.theirs]
        said = []
        if other.model != self.weights.model:
            said.append(f"{name} is of another model, {other.model}.")
        mine, its = (
            next(iter(self.snapshots.values()), None),
            next(iter(self.theirs.values()), None),
        )
        if mine and its and mine.n != its.n:
            said.append(f"The tensor has {its.n:,} weights there and {mine.n:,} here.")
        elif mine and its and (mine.lo, mine.hi) != (its.lo, its.hi):
            said.append(f"{name} was counted in other bins; it is redrawn in those of this run.")
        if missing:
            said.append(f"{name} has not stored: {', '.join(missing)}.")
        return " ".join(said)

    # several tensors -------------------------------------------------------------------------

    def module_in_blocks(self, stages: Sequence[str]) -> list[TensorSnapshot]:
        """The chosen tensor's module in every block."""
        _, module = self.weights.places[self.choice.tensor]
        return queries.module_snapshots(self.weights.job.id, module, stages)

    def on_page(self, stages: Sequence[str], names: Sequence[str]) -> list[TensorSnapshot]:
        """The tensors of one page of small multiples."""
        block, module = self.weights.places[self.choice.tensor]
        if self.choice.group == "block":
            return queries.block_snapshots(self.weights.job.id, block, stages)
        blocks = [self.weights.places[name][0] for name in names]
        return queries.module_snapshots(self.weights.job.id, module, stages, blocks)


def _by_stage(found: Sequence[TensorSnapshot], run: RunWeights) -> dict[str, TensorSnapshot]:
    """Stage -> snapshot in the order of the method; later steps replace earlier ones."""
    by_stage = {s.stage: s for s in found}
    return {stage: by_stage[stage] for stage in run.labels if stage in by_stage}


def other_stroke(stage: str) -> LineStyle:
    """The stage's colour in another dash: the run that is compared with."""
    stroke = stage_style(stage)
    return LineStyle(stroke.colour, OTHER_DASH.get(stroke.dash, "dash"))
