"""What can be looked at of a run's weights, and what is looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.statistics.names import RELATIVE_ERROR
from ui.charts.histograms import MAX_STAGES
from ui.charts.small_multiples import PANELS
from ui.charts.statistics import available
from ui.runs.weights import RunWeights, kept_stage
from ui.theme import stage_styles
from ui.widgets.explorer import Selection, known_or_first, neighbour

FIRST_STATISTICS = (RELATIVE_ERROR, "kurtosis")  # the map begins with the first there is
LAYER_VIEWS = {
    "map": "Map", "depth": "Depth", "ridges": "Ridges", "shapes": "Shapes", "inputs": "Inputs",
    "tree": "Tree",
}  # fmt: skip
TENSOR_VIEWS = {
    "overlay": "Overlay", "mirror": "Mirror", "magnitude": "Magnitude", "cumulative": "CDF",
    "difference": "Difference", "channels": "Channels", "matrix": "Image",
    "joint": "Before/after", "spectrum": "Spectrum", "story": "Steps",
}  # fmt: skip
TOPICS = {  # what the views of one tensor are about -> the views
    "distribution": ("overlay", "mirror", "magnitude", "cumulative", "difference", "story"),
    "matrix": ("matrix", "joint"),
    "channels": ("channels",),
    "spectrum": ("spectrum",),
}
AGAINST = {"": "Nothing", "dense": "Dense", "run": "Other run"}
GROUPS = {"module": "All blocks", "block": "All modules"}
SIDES = {"row": "Output channels", "column": "Input channels"}
MEASURES = {"norm": "Norm", "max": "Largest magnitude", "zeros": "Exact zeros"}
SPOT = re.compile(r"\d{1,6},\d{1,6}")
FLOWS = {"inputs": "Inputs", "weights": "Weights", "product": "Product"}
LOOKS = {"image": "Image", "surface": "3-D"}
CELLS = {"mean": "Mean", "max": "Largest", "zeros": "Zeros", "change": "Change"}
SCALES = {"linear": "Linear", "log": "Log"}
ORDERS = {"size": "By size", "index": "By number"}
FIXED = {  # controls that offer the same of every run
    "layers": LAYER_VIEWS, "group": GROUPS, "view": TENSOR_VIEWS, "y": SCALES, "side": SIDES,
    "measure": MEASURES, "order": ORDERS, "cells": CELLS, "flow": FLOWS, "look": LOOKS,
}  # fmt: skip


def is_main(stage: str) -> bool:
    """Whether a method passes through the stage, so that the page follows it."""
    style = stage_styles().get(stage)
    return style is not None and style.main


@dataclass(frozen=True)
class WeightsSelection(Selection):
    """What is looked at. (Gradio keeps the name "page" of an address for itself.)

    Attributes:
        run, vs: the run, and the one it is compared with.
        tensor: full name.
        layers, stage, stat, against, flow, group, start: of the view of all layers.
        view, show, y, side, measure, order, cells, look: of the view of one tensor.
        spot: "output,input" around which single weights are shown; empty: the whole matrix.
        topic: the one the view belongs to.
    """

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
    cells: str = ""
    look: str = ""
    flow: str = ""
    spot: str = ""
    topic: str = ""

    def settled(self, weights: RunWeights, other: RunWeights | None = None) -> WeightsSelection:
        """The same, with everything that is not stored replaced by what is."""
        statistics = available(weights.table)
        default = next(name for name in (*FIRST_STATISTICS, *statistics) if name in statistics)
        stat = self.stat if self.stat in statistics else default
        show = tuple(s for s in weights.stages if s in self.show)[:MAX_STAGES]
        settled = replace(
            self,
            run=weights.job.run,
            vs=other.job.run if other else "",
            tensor=known_or_first(self.tensor, weights.tensors),
            stage=self.stage if self.stage in weights.stages else last_with(stat, weights),
            stat=stat,
            against=known_or_first(self.against, AGAINST) if self.against != "run" or other else "",
            show=show or default_stages(weights, other is not None),
            spot=self.spot if SPOT.fullmatch(self.spot) else "",
            **{name: known_or_first(getattr(self, name), labels) for name, labels in FIXED.items()},
        )
        settled = settled.about()
        pages = settled.pages(weights)
        return replace(settled, start=self.start if self.start in pages else settled.page(weights))

    def about(self) -> WeightsSelection:
        """The same with the topic of its view, or where a topic is chosen, a view of that."""
        found = next(topic for topic, views in TOPICS.items() if self.view in views)
        topic = self.topic if self.topic in TOPICS else found
        return replace(self, topic=topic, view=known_or_first(self.view, TOPICS[topic]))

    @property
    def views(self) -> dict[str, str]:
        """The views of its topic: name -> label."""
        return {view: TENSOR_VIEWS[view] for view in TOPICS[self.topic]}

    def compared(self, weights: RunWeights) -> WeightsSelection:
        """The same, with the default stages where nobody has chosen others: two runs are compared
        at fewer of them than one is looked at."""
        defaults = [default_stages(weights, two_runs) for two_runs in (False, True)]
        return replace(self, show=()) if self.show in defaults else self

    def with_new_stages(self, weights: RunWeights, known: Sequence[str] | None) -> WeightsSelection:
        """The same with the main stages the run has reached since the `known` ones."""
        fresh = [s for s in weights.stages if is_main(s) and known is not None and s not in known]
        return replace(self, show=(*self.show, *fresh))

    def moved(self, weights: RunWeights, by: int) -> WeightsSelection:
        """The tensor `by` places on, as far as there are any."""
        moved = replace(self, tensor=neighbour([*weights.tensors], self.tensor, by))
        return replace(moved, start=moved.page(weights))

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
            str(start): _page_label(names[start : start + PANELS], weights, self.group)
            for start in starts
        }

    def page(self, weights: RunWeights) -> str:
        """The page of small multiples the tensor is on."""
        place = self.panels(weights).index(self.tensor)
        return str(place - place % PANELS)


def main_stages(stages: Sequence[str]) -> list[str]:
    """The stages a model passes through on its way to what a method makes of it."""
    main = [s for s in stages if is_main(s)]
    return main if len(main) > 1 else [*stages]


def last_with(stat: str, weights: RunWeights) -> str:
    """The last main stage of which a statistic is stored; without one, the last."""
    main = main_stages(weights.stages)
    having = [s for s in main if weights.of_stage(s)[stat].notna().any()]
    return (having or main)[-1]


def default_stages(weights: RunWeights, two_runs: bool) -> tuple[str, ...]:
    """The stages that are shown where nobody has chosen any; beside another run what was kept."""
    main = main_stages(weights.stages)
    kept = kept_stage(weights, weights.stages)
    return tuple(dict.fromkeys((main[0], kept)) if two_runs else main[:MAX_STAGES])


def _page_label(names: Sequence[str], weights: RunWeights, group: str) -> str:
    if group == "block":
        return f"Block {weights.places[names[0]][0]}"
    first, last = weights.places[names[0]][0], weights.places[names[-1]][0]
    return f"Blocks {first} to {last}" if first != last else f"Block {first}"
