"""What is looked at, read from the database: one query for each question a view asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from backend.errors import ModelError
from backend.statistics.names import MAGNITUDES, channel_profile
from backend.statistics.regions import Region, read_region
from backend.statistics.tensors import TensorProfile, TensorSnapshot
from backend.store import tensors
from ui.charts.series import Series
from ui.pages.weights.selection import WeightsSelection
from ui.runs.weights import DENSE, RunWeights, kept_stage, saved_folders, weights_of
from ui.theme import LineStyle, stage_style

CODES = "codes"  # profile of a quantised tensor: how often each is used
ZOOM = 48  # rows and columns of single weights
OTHER_DASH = {"solid": "dash", "dot": "dashdot"}  # of the run that is compared with
Profiles = dict[str, TensorProfile]  # by stage


@dataclass(frozen=True)
class TensorView:
    """A settled selection, and the runs it is about."""

    selection: WeightsSelection
    weights: RunWeights
    other: RunWeights | None

    @classmethod
    def at(cls, selection: WeightsSelection) -> TensorView | None:
        """The selection settled on what is stored; None where the run has no statistics."""
        weights = weights_of(selection.run)
        if weights is None:
            return None
        other = weights_of(selection.vs) if selection.vs != weights.job.run else None
        return cls(selection.settled(weights, other), weights, other)

    def select(self, selection: WeightsSelection) -> TensorView:
        """The same runs at another settled selection."""
        return replace(self, selection=selection)

    # one tensor ------------------------------------------------------------------------------

    @cached_property
    def snapshots(self) -> dict[str, TensorSnapshot]:
        """The tensor at each stage of the run, in order; of several steps the last."""
        return self._snapshots(self.weights)

    @cached_property
    def other_snapshots(self) -> dict[str, TensorSnapshot]:
        """The same tensor in the other run; empty where there is none."""
        return self._snapshots(self.other)

    def _snapshots(self, run: RunWeights | None) -> dict[str, TensorSnapshot]:
        if run is None or self.selection.tensor not in run.tensors:
            return {}
        stored = tensors.tensor_snapshots(run.job.id, self.selection.tensor)
        by_stage = {s.stage: s for s in stored}
        return {stage: by_stage[stage] for stage in run.labels if stage in by_stage}

    @property
    def steps(self) -> list[int]:
        """When the snapshots were taken, of both runs."""
        return [s.step for s in (*self.snapshots.values(), *self.other_snapshots.values())]

    def own_stages(self) -> list[str]:
        """The chosen stages the tensor has reached in the run."""
        return [s for s in self.selection.show if s in self.snapshots]

    def counterpart(self, stage: str) -> str:
        """The stage of the other run to compare a stage with: what it kept with what this run kept,
        whatever their methods call that; any other stage with the same."""
        if self.other is None or stage != kept_stage(self.weights, self.weights.stages):
            return stage
        kept = kept_stage(self.other, self.other.stages)
        return stage if kept == DENSE else kept

    def drawn_stages(self, other_run: bool) -> list[str]:
        """The chosen stages of the run, or their counterparts in the other; the dense tensor, which
        is the same in both where the model is, once."""
        if not other_run:
            return [*self.selection.show]
        same = self.other is not None and self.other.model == self.weights.model
        twins = dict.fromkeys(map(self.counterpart, self.selection.show))
        return [stage for stage in twins if stage != DENSE or not same]

    def series(self, *, magnitudes: bool = False) -> list[Series]:
        """What is drawn: the chosen stages of the run, then those of the other run."""
        drawn = []
        for run, other_run in ((self.weights, False), (self.other, True)):
            counts = self.profiles(run, MAGNITUDES) if magnitudes else {}
            stored = self.other_snapshots if other_run else self.snapshots
            drawn += [
                self.one(stage, other_run=other_run, magnitudes=counts.get(stage))
                for stage in self.drawn_stages(other_run)
                if stage in stored
            ]
        return drawn

    def one(
        self, stage: str, *, other_run: bool = False, magnitudes: TensorProfile | None = None
    ) -> Series:
        """One stage of the run, or of the other run."""
        snapshots = self.other_snapshots if other_run else self.snapshots
        return Series(
            snapshots[stage],
            self.label(stage, other_run),
            other_stroke(stage) if other_run else stage_style(stage),
            None if magnitudes is None else magnitudes.values,
        )

    def label(self, stage: str, other_run: bool = False) -> str:
        """The stage, with its run where two are drawn."""
        run = self.other if other_run and self.other else self.weights
        label = run.labels.get(stage, stage)
        return f"{label}, {run.job.run}" if self.other else label

    def profiles(self, run: RunWeights | None, name: str) -> Profiles:
        """One profile of the tensor at each stage, of several steps the last."""
        if run is None or self.selection.tensor not in run.tensors:
            return {}
        return {p.stage: p for p in tensors.profiles(run.job.id, self.selection.tensor, name)}

    @property
    def quantized(self) -> bool:
        """Whether the run has recorded the groups of the tensor."""
        return bool(tensors.profiles(self.weights.job.id, self.selection.tensor, CODES))

    def saved_weights(self, output: int, input: int) -> Iterator[tuple[str, Region, np.ndarray]]:
        """The weights around a place at the stages whose files are there, dense and what the run
        saved: stage, where they lie, and [rows, columns] in float32."""
        outputs, inputs = (
            len(self.profiles(self.weights, channel_profile(side, "norm"))[DENSE].values)
            for side in ("row", "column")
        )
        if output >= outputs or input >= inputs:
            return
        region = Region.around(output, input, (outputs, inputs), ZOOM)
        for stage, folder in saved_folders(self.weights.job).items():
            try:
                values = read_region(folder, self.selection.tensor, region)
            except ModelError:
                continue
            if values is not None and stage in self.weights.labels:
                yield stage, region, values

    def caveats(self) -> str:
        """In words: why the two runs cannot be compared here, or with what care; often nothing."""
        other, tensor = self.other, self.selection.tensor
        if other is None:
            return ""
        run, same_model = other.job.run, other.model == self.weights.model
        if tensor not in other.tensors:
            model = "" if same_model else f" (model: {other.model})"
            return f"{run}{model} has no tensor {tensor}."
        missing = [
            self.weights.labels[s]
            for s in self.selection.show
            if self.counterpart(s) not in self.other_snapshots
        ]
        notes = [
            "" if same_model else f"{run} has another model, {other.model}.",
            self._bins_caveat(run),
            f"{run} has not stored: {', '.join(missing)}." if missing else "",
        ]
        return " ".join(filter(None, notes))

    def _bins_caveat(self, run: str) -> str:
        mine = next(iter(self.snapshots.values()), None)
        theirs = next(iter(self.other_snapshots.values()), None)
        if not mine or not theirs:
            return ""
        if mine.n != theirs.n:
            return f"The tensor has {theirs.n:,} weights there and {mine.n:,} here."
        if (mine.lo, mine.hi) != (theirs.lo, theirs.hi):
            return f"The histogram of {run} had other bins; it is redrawn on those of this run."
        return ""

    # several tensors -------------------------------------------------------------------------

    def module_in_blocks(
        self, stages: Sequence[str], run: RunWeights | None = None
    ) -> list[TensorSnapshot]:
        """The chosen tensor's module in every block, of the run or another."""
        _, module = self.weights.places[self.selection.tensor]
        return tensors.module_snapshots((run or self.weights).job.id, module, stages)

    def profile_in_blocks(self, name: str, stage: str = "") -> dict[int, TensorProfile]:
        """Block -> a profile of the chosen tensor's module, at one stage or wherever it is."""
        _, module = self.weights.places[self.selection.tensor]
        stored = tensors.module_profiles(self.weights.job.id, module, name)
        return {p.block: p for p in stored if stage in ("", p.stage)}

    def on_page(self, stages: Sequence[str], names: Sequence[str]) -> list[TensorSnapshot]:
        """The tensors of one page of small multiples."""
        block, module = self.weights.places[self.selection.tensor]
        if self.selection.group == "block":
            return tensors.block_snapshots(self.weights.job.id, block, stages)
        blocks = [self.weights.places[name][0] for name in names]
        return tensors.module_snapshots(self.weights.job.id, module, stages, blocks)


def other_stroke(stage: str) -> LineStyle:
    """The stage's colour in another dash: the run that is compared with."""
    stroke = stage_style(stage)
    return LineStyle(stroke.colour, OTHER_DASH.get(stroke.dash, "dash"))
