"""What can be looked at of a run's weights, and what is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import pandas as pd

from backend.settings import settings
from backend.store import queries
from backend.store.tables import Job
from jobs.kinds import kinds
from ui.charts.heatmap import in_order
from ui.charts.overlay import MOST
from ui.charts.statistics import STATISTICS, available

SCALES = ("linear", "log")
USUAL = ("dense", "first", "redense", "sds")
TELLING = "relative_error"


@dataclass(frozen=True)
class RunWeights:
    """The weight statistics of one run.

    Attributes:
        labels: stage -> label, in the order of the method.
        table: as `queries.tensor_table` returns it; never empty.
        stages: the ones it holds, in order.
        tensors: full name -> "Block 3, q_proj", block by block, as data flows.
    """

    job: Job
    labels: Mapping[str, str]
    table: pd.DataFrame
    stages: list[str]
    tensors: dict[str, str]

    def of_stage(self, stage: str) -> pd.DataFrame:
        """The rows of one stage."""
        return self.table[self.table["stage"] == stage]


def weights_of(run: str) -> RunWeights | None:
    """The statistics of a run; None where there is no such run or it has none."""
    mark = queries.weights_mark(run)
    return _weights(settings().url, mark) if mark and mark[1] else None


@lru_cache(maxsize=8)
def _weights(_url: str, mark: tuple[str, int, int]) -> RunWeights:
    """Read once for all open pages, until the run has moved on."""
    job = queries.job(mark[0])
    table = queries.tensor_table(job.id)
    kind = kinds().get(job.kind)
    held: list[str] = [*dict.fromkeys(table["stage"])]
    labels = (dict(kind.stages) if kind else {}) or {stage: stage for stage in held}
    labels |= {stage: stage for stage in held if stage not in labels}
    stages = [stage for stage in labels if stage in held]
    return RunWeights(job, labels, table, stages, _tensors(table))


def _tensors(table: pd.DataFrame) -> dict[str, str]:
    modules = in_order([*table["module"].unique()])
    unique = table.drop_duplicates("tensor")
    unique = unique.assign(place=unique["module"].map(modules.index))
    return {
        row.tensor: f"Block {row.block}, {row.module.rsplit('.', 1)[-1]}"
        for row in unique.sort_values(["block", "place"]).itertuples()
    }


@dataclass(frozen=True)
class Choice:
    """What is looked at. Empty parts are up to us."""

    run: str = ""
    tensor: str = ""
    stage: str = ""
    stat: str = ""
    show: tuple[str, ...] = ()
    y: str = ""

    def settled(self, weights: RunWeights) -> Choice:
        """The same, with everything this run does not have replaced by what it has."""
        held = available(weights.table)
        telling = TELLING if TELLING in held else held[0]
        shown = tuple(s for s in weights.stages if s in self.show)[:MOST]
        usual = tuple(s for s in weights.stages if s in USUAL) or tuple(weights.stages[:MOST])
        return replace(
            self,
            run=weights.job.run,
            tensor=self.tensor if self.tensor in weights.tensors else next(iter(weights.tensors)),
            stage=self.stage if self.stage in weights.stages else weights.stages[-1],
            stat=self.stat if self.stat in STATISTICS else telling,
            show=shown or usual,
            y=self.y if self.y in SCALES else SCALES[0],
        )

    def joined_by(self, weights: RunWeights, known: Sequence[str] | None) -> Choice:
        """The same with the usual stages the run has reached since the `known` ones."""
        fresh = [s for s in weights.stages if s in USUAL and known is not None and s not in known]
        return replace(self, show=(*self.show, *fresh))

    def moved(self, weights: RunWeights, step: int) -> Choice:
        """The tensor `step` places on, as far as there are any."""
        names = list(weights.tensors)
        place = names.index(self.tensor) + step
        return replace(self, tensor=names[max(0, min(place, len(names) - 1))])
