"""What can be looked at of a run that trained inside a quantisation grid, and what is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from backend.settings import settings
from backend.store import frames, queries
from backend.store.tables import Job
from jobs.kind import kinds
from ui.pages.quantization.charts import FIGURES, Group, GroupWeights
from ui.widgets.explorer import tensor_names

MAGNITUDE, SCALE, ERROR, CODES, WORST = "magnitude", "scale", "error", "codes", "worst"  # profiles
MAIN = "dlqat"  # the stage people come for
CURVES = {
    "loss": "Loss", "rate": "Rate", "changed": "Codes", "m": "Magnitudes",
}  # fmt: skip


@dataclass(frozen=True)
class QuantRun:
    """What one run has recorded of its groups.

    Attributes:
        labels: stage -> label, in the order of the method.
        stages: those with groups, in order.
        tensors: full name -> "Block 3, q_proj".
        steps: stage and figure -> the steps it was recorded at, ascending.
    """

    job: Job
    labels: Mapping[str, str]
    stages: list[str]
    tensors: dict[str, str]
    steps: dict[tuple[str, str], list[int]]

    def nearest(self, stage: str, figure: str, step: int) -> int:
        """The step nearest to `step` at which the figure was recorded; of two, the later."""
        held = self.steps.get((stage, figure), [0])
        return min(held, key=lambda at: (abs(at - step), -at))


def quant_of(run: str) -> QuantRun | None:
    """What the run has recorded; None where there is no such run or it has no groups."""
    mark = queries.profiles_mark(run) if run else None
    return _quant(settings().url, mark) if mark and mark[1] else None


@lru_cache(maxsize=8)
def _quant(_url: str, mark: tuple[str, int]) -> QuantRun | None:
    """Read once for all open pages, until the run has recorded more."""
    job, names = queries.job(mark[0]), frames.profile_names(mark[0])
    groups = names[names["name"] == MAGNITUDE]
    if groups.empty:
        return None
    kind = kinds().get(job.kind)
    held = [*groups["stage"].unique()]
    labels = {str(s): label for s, label in kind.stages.items()} if kind else {s: s for s in held}
    names = names[names["stage"].isin(held)]
    steps = {
        (str(stage), str(name)): sorted({*found["step"]})
        for (stage, name), found in names.groupby(["stage", "name"])
    }
    stages = [s for s in labels if s in held]
    return QuantRun(job, labels, stages, tensor_names(groups), steps)


@dataclass(frozen=True)
class QuantSelection:
    """What is looked at. Empty parts are up to us; the fields are the page's controls, in order,
    and the names in its address.

    Attributes:
        group: "12,3" is group 3 of row 12.
    """

    run: str = ""
    stage: str = ""
    curve: str = ""
    tensor: str = ""
    figure: str = ""
    step: str = ""
    group: str = ""

    def settled(self, quant: QuantRun) -> QuantSelection:
        """The same, with everything that is not there replaced by what is."""
        usual = MAIN if MAIN in quant.stages else quant.stages[-1]
        stage = self.stage if self.stage in quant.stages else usual
        held = [name for name in FIGURES if (stage, name) in quant.steps]
        last = quant.steps[stage, MAGNITUDE][-1]
        step = int(self.step) if self.step.isdecimal() else last
        return replace(
            self,
            run=quant.job.run,
            stage=stage,
            curve=self.curve if self.curve in CURVES else next(iter(CURVES)),
            tensor=self.tensor if self.tensor in quant.tensors else next(iter(quant.tensors)),
            figure=self.figure if self.figure in held else held[0],
            step=str(quant.nearest(stage, MAGNITUDE, step)),
        )


@dataclass(frozen=True)
class QuantView:
    """A settled choice and what was recorded of its tensor."""

    choice: QuantSelection
    quant: QuantRun

    @classmethod
    def at(cls, asked: QuantSelection) -> QuantView | None:
        """None where the run has no groups."""
        quant = quant_of(asked.run)
        return cls(asked.settled(quant), quant) if quant else None

    def of_steps(self, figure: str) -> dict[int, np.ndarray]:
        """Step -> one figure of the chosen tensor at the chosen stage."""
        found = queries.profiles(self.quant.job.id, self.choice.tensor, figure)
        return {p.step: p.values for p in found if p.stage == self.choice.stage}

    @cached_property
    def magnitudes(self) -> dict[int, np.ndarray]:
        return self.of_steps(MAGNITUDE)

    @cached_property
    def errors(self) -> np.ndarray:
        """Of each group [rows, groups], as they were recorded last."""
        found = self.of_steps(ERROR)
        return found[max(found)]

    @property
    def step(self) -> int:
        """The step nearest to the chosen one at which the figure was recorded."""
        choice = self.choice
        return self.quant.nearest(choice.stage, choice.figure, int(choice.step))

    def figure_at(self, figure: str, step: int) -> np.ndarray:
        """One figure of the groups at the step nearest to `step` it was recorded at."""
        return self.of_steps(figure)[self.quant.nearest(self.choice.stage, figure, step)]

    @cached_property
    def worst_first(self) -> list[Group]:
        """All groups, the one with the largest error first."""
        order = np.argsort(-self.errors, axis=None, kind="stable")
        rows, groups = np.unravel_index(order, self.errors.shape)
        return list(zip(rows.tolist(), groups.tolist(), strict=True))

    @cached_property
    def group(self) -> Group:
        """The chosen group; the worst where none is chosen or it is not there."""
        row, _, group = self.choice.group.partition(",")
        if row.isdecimal() and group.isdecimal():
            found = int(row), int(group)
            if found[0] < self.errors.shape[0] and found[1] < self.errors.shape[1]:
                return found
        return self.worst_first[0]

    @property
    def weights(self) -> GroupWeights | None:
        """The chosen group weight by weight; None where it is not among the worst recorded."""
        found = self.of_steps(WORST)
        if not found:
            return None
        rows = found[max(found)]
        at = [i for i, line in enumerate(rows) if (int(line[0]), int(line[1])) == self.group]
        if not at:
            return None
        zero, both = rows[at[0], 2], rows[at[0], 3:]
        dense, moved = both[: len(both) // 2], both[len(both) // 2 :]
        step = float(self.figure_at(SCALE, max(found))[self.group])
        codes = len(next(iter(self.of_steps(CODES).values())))
        return GroupWeights(dense, moved, step * (np.arange(codes) - zero))

    def moved(self, by: int) -> QuantView:
        """The group `by` places on in the order of their errors, as far as there are any."""
        place = self.worst_first.index(self.group) + by
        row, group = self.worst_first[max(0, min(place, len(self.worst_first) - 1))]
        return QuantView(replace(self.choice, group=f"{row},{group}"), self.quant)
