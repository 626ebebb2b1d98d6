"""What can be looked at of a run that trained inside a quantization grid, and what is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from backend.statistics.tensors import INPUT_ENERGY
from backend.store import frames, queries, tensors
from backend.store.tables import Job
from ui.pages.quantization.charts import GroupWeights, InputGroups
from ui.pages.quantization.group_map import FIGURES, Group
from ui.runs.results import kind_of
from ui.runs.weights import stage_labels, tensor_names
from ui.widgets.explorer import Selection, cached_by, neighbor, valid_or_first

MAGNITUDE, SCALE, ERROR, CODES, WORST = "magnitude", "scale", "error", "codes", "worst"  # profiles


@dataclass(frozen=True)
class QuantRun:
    """Recorded data of one run's groups."""

    job: Job
    labels: Mapping[str, str]  # by stage, in the order of the method
    stages: list[str]  # those with groups, in order
    tensors: dict[str, str]  # full name -> "Block 3, q_proj"
    steps: dict[tuple[str, str], list[int]]  # by stage and figure, ascending
    places: dict[str, tuple[int, str]]  # full name -> block and module

    def nearest(self, stage: str, figure: str, step: int) -> int:
        recorded = self.steps.get((stage, figure), [0])
        return min(recorded, key=lambda at: (abs(at - step), -at))


@cached_by(queries.profiles_mark)
def quant_of(run: str) -> QuantRun | None:
    job, names = queries.job(run), frames.profile_names(run)
    groups = names[names["name"] == MAGNITUDE]
    if groups.empty:
        return None
    recorded = [*groups["stage"].unique()]
    labels = stage_labels(job, recorded)
    steps = {
        (str(stage), str(name)): sorted({*rows["step"]})
        for (stage, name), rows in names[names["stage"].isin(recorded)].groupby(["stage", "name"])
    }
    stages = [s for s in labels if s in recorded]
    places = {str(row.tensor): (row.block, row.module) for row in groups.itertuples()}
    return QuantRun(job, labels, stages, tensor_names(groups), steps, places)


@dataclass(frozen=True)
class QuantSelection(Selection):
    """What is looked at; the group "12,3" is group 3 of row 12."""

    stage: str = ""
    tensor: str = ""
    figure: str = ""
    step: str = ""
    group: str = ""

    def settled(self, quant: QuantRun) -> "QuantSelection":
        """Selection with unknown fields replaced by defaults."""
        kind = kind_of(quant.job)
        wanted = (quant.job.kept_stage, kind.default_stage if kind else "")
        default = next((each for each in wanted if each in quant.stages), quant.stages[-1])
        stage = self.stage if self.stage in quant.stages else default
        figures = [name for name in FIGURES if (stage, name) in quant.steps]
        last = quant.steps[stage, MAGNITUDE][-1]
        step = int(self.step) if self.step.isdecimal() else last
        return replace(
            self,
            run=quant.job.run,
            stage=stage,
            tensor=valid_or_first(self.tensor, quant.tensors),
            figure=valid_or_first(self.figure, figures),
            step=str(quant.nearest(stage, MAGNITUDE, step)),
        )


@dataclass(frozen=True)
class QuantView:
    selection: QuantSelection
    quant: QuantRun

    @classmethod
    def at(cls, selection: QuantSelection) -> "QuantView | None":
        quant = quant_of(selection.run)
        return cls(selection.settled(quant), quant) if quant else None

    def select(self, **fields: str) -> "QuantView":
        return QuantView(replace(self.selection, **fields), self.quant)

    def by_step(self, figure: str) -> dict[int, np.ndarray]:
        profiles = tensors.profiles(self.quant.job.id, self.selection.tensor, figure)
        return {p.step: p.values for p in profiles if p.stage == self.selection.stage}

    @cached_property
    def magnitudes(self) -> dict[int, np.ndarray]:
        return self.by_step(MAGNITUDE)

    @cached_property
    def codes(self) -> dict[int, np.ndarray]:
        """Frequency of each code by step, [2^bits]."""
        return self.by_step(CODES)

    @cached_property
    def errors(self) -> np.ndarray:
        """Last recorded error of each group, [rows, groups]."""
        errors = self.by_step(ERROR)
        return errors[max(errors)]

    @property
    def step(self) -> int:
        """Recorded step nearest to the chosen one."""
        selection = self.selection
        return self.quant.nearest(selection.stage, selection.figure, int(selection.step))

    @property
    def snapshot_steps(self) -> list[int]:
        return self.quant.steps[self.selection.stage, MAGNITUDE]

    def figure_at(self, figure: str, step: int) -> np.ndarray:
        """Figure of the groups at the recorded step nearest to `step`."""
        return self.by_step(figure)[self.quant.nearest(self.selection.stage, figure, step)]

    @cached_property
    def worst_first(self) -> list[Group]:
        order = np.argsort(-self.errors, axis=None, kind="stable")
        rows, groups = np.unravel_index(order, self.errors.shape)
        return list(zip(rows.tolist(), groups.tolist(), strict=True))

    @cached_property
    def group(self) -> Group:
        """Chosen group, or the worst."""
        row, _, group = self.selection.group.partition(",")
        if row.isdecimal() and group.isdecimal():
            chosen = int(row), int(group)
            if chosen[0] < self.errors.shape[0] and chosen[1] < self.errors.shape[1]:
                return chosen
        return self.worst_first[0]

    @cached_property
    def input_groups(self) -> list[InputGroups]:
        job, (_, module) = self.quant.job.id, self.quant.places[self.selection.tensor]
        energies = {p.block: p.values for p in tensors.module_profiles(job, module, INPUT_ENERGY)}
        errors = {
            p.tensor: p
            for p in tensors.module_profiles(job, module, ERROR)
            if p.stage == self.selection.stage
        }
        return [
            InputGroups.of(name, error.block, energies[error.block], error.values)
            for name, error in errors.items()
            if error.block in energies
        ]

    @property
    def group_size(self) -> int:
        """Number of weights in a group; 0 where unknown."""
        codes = self.codes
        return round(codes[max(codes)].sum(dtype=float) / self.errors.size) if codes else 0

    @property
    def weights(self) -> GroupWeights | None:
        """Weights of the chosen group; None where it is not among the worst recorded."""
        recorded = self.by_step(WORST)
        if not recorded:
            return None
        last = max(recorded)
        row = next((r for r in recorded[last] if (int(r[0]), int(r[1])) == self.group), None)
        if row is None:
            return None
        zero, both = row[2], row[3:]
        dense, quantized = both[: len(both) // 2], both[len(both) // 2 :]
        scale = float(self.figure_at(SCALE, last)[self.group])
        codes = len(next(iter(self.codes.values())))
        return GroupWeights(dense, quantized, np.sort(scale * (np.arange(codes) - zero)))

    def moved(self, by: int) -> "QuantView":
        row, group = neighbor(self.worst_first, self.group, by)
        return self.select(group=f"{row},{group}")
