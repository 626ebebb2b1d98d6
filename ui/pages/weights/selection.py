"""What can be looked at of a run's weights, and what is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import pandas as pd

from backend.settings import settings
from backend.store import frames, queries
from backend.store.tables import Job
from jobs.kind import kinds
from ui.charts.channels import MEASURES, SIDES
from ui.charts.histograms import MOST
from ui.charts.statistics import available
from ui.pages.weights.small_multiples import PANELS
from ui.widgets.explorer import tensor_names

SCALES = ("linear", "log")
PATH = ("dense", "first", "redense", "sds", "rtn", "gptq", "dlqat")  # the rest are side ways
TELLING = ("relative_error", "kurtosis")  # the map begins with the first there is
DENSE = "dense"
LAYERS = {"map": "Map", "depth": "Depth", "shapes": "Shapes"}
VIEWS = {
    "overlay": "Overlay", "mirror": "Mirror", "magnitude": "Magnitude", "cumulative": "CDF",
    "difference": "Difference", "channels": "Channels", "story": "Steps",
}  # fmt: skip
AGAINST = {"": "Nothing", "dense": "Dense", "run": "Other run"}
GROUPS = {"module": "All blocks", "block": "All modules"}
ORDERS = {"size": "By size", "index": "By number"}


@dataclass(frozen=True)
class RunWeights:
    """The weight statistics of one run, the newest of each tensor and stage.

    Attributes:
        labels: stage -> label, in the order of the method.
        table: as `frames.tensor_table` returns it; never empty.
        stages: the ones it holds, in order.
        tensors: full name -> "Block 3, q_proj", block by block, as data flows.
        places: full name -> block and module.
    """

    job: Job
    labels: Mapping[str, str]
    table: pd.DataFrame
    stages: list[str]
    tensors: dict[str, str]
    places: dict[str, tuple[int, str]]

    def of_stage(self, stage: str) -> pd.DataFrame:
        """The rows of one stage."""
        return self.table[self.table["stage"] == stage]

    @property
    def model(self) -> str:
        return str(self.job.config.get("model", ""))


def weights_of(run: str) -> RunWeights | None:
    """The statistics of a run; None where there is no such run or it has none."""
    mark = queries.weights_mark(run) if run else None
    return _weights(settings().url, mark) if mark and mark[1] else None


@lru_cache(maxsize=8)
def _weights(_url: str, mark: tuple[str, int, int]) -> RunWeights:
    """Read once for all open pages, until the run has moved on."""
    job = queries.job(mark[0])
    table = frames.tensor_table(job.id).groupby(["tensor", "stage"], sort=False).tail(1)
    kind = kinds().get(job.kind)
    held: list[str] = [*dict.fromkeys(table["stage"])]
    labels = (dict(kind.stages) if kind else {}) or {stage: stage for stage in held}
    labels |= {stage: stage for stage in held if stage not in labels}
    stages = [stage for stage in labels if stage in held]
    places = {row.tensor: (row.block, row.module) for row in table.itertuples()}
    return RunWeights(job, labels, table, stages, tensor_names(table), places)


@dataclass(frozen=True)
class WeightsSelection:
    """What is looked at. Empty parts are up to us; the fields are the page's controls, in order,
    and the names in its address (where Gradio keeps "page" for itself).

    Attributes:
        run, vs: the run, and the one it is compared with.
        tensor: full name.
        layers, stage, stat, against, group, start: of the view of all layers.
        view, show, y, side, measure, order: of the view of one tensor.
    """

    run: str = ""
    vs: str = ""
    tensor: str = ""
    layers: str = ""
    stage: str = ""
    stat: str = ""
    against: str = ""
    group: str = ""
    start: str = ""
    view: str = ""
    show: tuple[str, ...] = ()
    y: str = ""
    side: str = ""
    measure: str = ""
    order: str = ""

    def settled(self, weights: RunWeights, other: RunWeights | None = None) -> WeightsSelection:
        """The same, with everything that is not there replaced by what is."""
        held = available(weights.table)
        telling = next(name for name in (*TELLING, *held) if name in held)
        shown = tuple(s for s in weights.stages if s in self.show)[:MOST]
        tensors = [*weights.tensors]
        settled = replace(
            self,
            run=weights.job.run,
            vs=other.job.run if other else "",
            tensor=self.tensor if self.tensor in weights.tensors else tensors[0],
            layers=_one_of(self.layers, LAYERS),
            stage=self.stage if self.stage in weights.stages else main_stages(weights.stages)[-1],
            stat=self.stat if self.stat in held else telling,
            against="" if self.against == "run" and not other else _one_of(self.against, AGAINST),
            group=_one_of(self.group, GROUPS),
            view=_one_of(self.view, VIEWS),
            show=shown or usual_stages(weights.stages, other is not None),
            y=_one_of(self.y, SCALES),
            side=_one_of(self.side, SIDES),
            measure=_one_of(self.measure, MEASURES),
            order=_one_of(self.order, ORDERS),
        )
        pages = settled.pages(weights)
        return replace(settled, start=self.start if self.start in pages else settled.home(weights))

    def compared(self, weights: RunWeights) -> WeightsSelection:
        """The same, the stages up to us where nobody has chosen others: two runs are compared at
        fewer of them than one is looked at."""
        usual = [usual_stages(weights.stages, two) for two in (False, True)]
        return replace(self, show=()) if self.show in usual else self

    def joined_by(self, weights: RunWeights, known: Sequence[str] | None) -> WeightsSelection:
        """The same with the main stages the run has reached since the `known` ones."""
        fresh = [s for s in weights.stages if s in PATH and known is not None and s not in known]
        return replace(self, show=(*self.show, *fresh))

    def moved(self, weights: RunWeights, step: int) -> WeightsSelection:
        """The tensor `step` places on, as far as there are any."""
        names = list(weights.tensors)
        place = names.index(self.tensor) + step
        moved = replace(self, tensor=names[max(0, min(place, len(names) - 1))])
        return replace(moved, start=moved.home(weights))

    def panels(self, weights: RunWeights) -> list[str]:
        """The tensors of the small multiples, of all pages, in order."""
        by = 1 if self.group == "module" else 0
        same = weights.places[self.tensor][by]
        return [name for name in weights.tensors if weights.places[name][by] == same]

    def pages(self, weights: RunWeights) -> dict[str, str]:
        """Pages of small multiples: number of its first panel -> its panels in words."""
        names = self.panels(weights)
        starts = range(0, len(names), PANELS)
        return {
            str(start): _span(names[start : start + PANELS], weights, self.group)
            for start in starts
        }

    def home(self, weights: RunWeights) -> str:
        """The page of small multiples the chosen tensor is on."""
        place = self.panels(weights).index(self.tensor)
        return str(place - place % PANELS)


def main_stages(stages: Sequence[str]) -> list[str]:
    """The stages a model passes through on its way to what a method makes of it."""
    main = [s for s in stages if s in PATH]
    return main if len(main) > 1 else [*stages]


def usual_stages(stages: Sequence[str], two_runs: bool) -> tuple[str, ...]:
    """The stages that are shown where nobody has chosen any."""
    main = main_stages(stages)
    return tuple(dict.fromkeys((main[0], main[-1])) if two_runs else main[:MOST])


def _span(names: Sequence[str], weights: RunWeights, group: str) -> str:
    if group == "block":
        return f"Block {weights.places[names[0]][0]}"
    first, last = weights.places[names[0]][0], weights.places[names[-1]][0]
    return f"Blocks {first} to {last}" if first != last else f"Block {first}"


def _one_of(value: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """The value, or the first that is known."""
    return value if value in known else next(iter(known))
