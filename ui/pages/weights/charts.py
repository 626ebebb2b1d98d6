"""The selection on *Weights*, and the map of layers in stories.

`state.js` reads and writes the selection in the URL. On the page itself, the browser draws all
charts (`assets/scripts/weights`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.statistics.tensors import RELATIVE_ERROR
from backend.store import queries
from ui.charts.chart import Chart
from ui.charts.headlines import cells_headline, lower
from ui.charts.heatmap import STATISTICS, MapBaseline, available, cells, layer_map
from ui.charts.series import MAX_STAGES
from ui.runs.results import DENSE, real_models_first
from ui.runs.weights import RunWeights, kept_stage, weights_of
from ui.theme import declared
from ui.widgets.explorer import Selection, valid_or_first

VIEWS = {  # views below the map and the histogram
    "ridges": "Ridges",
    "matrix": "Matrix",
    "joint": "Before/after",
    "channels": "Channels",
    "spectrum": "Spectrum",
    "groups": "Group magnitudes",
}
OPTIONS: dict[str, dict[str, tuple[str, dict[str, str]]]] = {  # view -> field -> label, choices
    "matrix": {
        "cells": (
            "Cells",
            {"mean": "Mean", "max": "Largest", "zeros": "Zeros", "change": "Change from dense"},
        )
    },
    "channels": {
        "side": ("Channels", {"row": "Output channels", "column": "Input channels"}),
        "measure": ("Figure", {"norm": "Norm", "max": "Largest magnitude", "zeros": "Exact zeros"}),
        "order": ("Order", {"size": "By size", "index": "By number"}),
    },
}
TEXTS = {  # chart -> its question, and findings of the literature
    "map": (
        "",
        "Layers differ in how much compression they bear. OWL gives each layer its own sparsity "
        "(Yin et al. 2023), HAWQ its own bits (Dong et al. 2019).",
    ),
    "overlay": (
        "What did each step do to the distribution of this tensor's weights?",
        "Magnitude pruning removes the middle of the distribution (Han et al. 2015). Small weights "
        "between the dotted lines stay because their inputs are large.",
    ),
    "ridges": (
        "How does the distribution change from block to block?",
        "A pruned model that is made dense again prunes better than the original (SDS, Li et al. "
        "2025). Its middle peak holds the weights that can go.",
    ),
    "channels": (
        "Are there outlier channels, and are they pruned as much?",
        "A few features are far larger than all others; rounding or pruning them costs most "
        "(Dettmers et al. 2022).",
    ),
    "matrix": (
        "Where in the matrix are the large weights, and where did they change?",
        "Bright columns are input features that all outputs read (outlier features, Dettmers et "
        "al. 2022).",
    ),
    "joint": (
        "Where did each weight go, by its dense value?",
        "The other weights compensate for a removed or rounded one (Optimal Brain Surgeon, Hassibi "
        "and Stork 1993). They lie off the diagonal.",
    ),
    "spectrum": (
        "How many directions carry the weights?",
        "The stable rank ‖W‖² / σ² counts the directions that matter. The tail exponent α of "
        "well-trained layers lies between 2 and 6 (Martin and Mahoney 2021).",
    ),
    "groups": (
        "How far did training move the scale of each group?",
        "DL-QAT learns a magnitude per group apart from the direction of its weights (Ke et al. "
        "2024), as DoRA does for columns (Liu et al. 2024).",
    ),
}


@dataclass(frozen=True)
class WeightsSelection(Selection):
    """The part of the selection that charts of stories use. Gradio reserves the parameter "page".

    Attributes:
        run: the run.
        vs: reference of all comparisons, a stage of the run or another run.
        tensor: full name; `stage`, `stat`: of the map.
        show, y: chosen stages and height axis of the histogram; `view`: the panel below it, with
            its `OPTIONS`; `step`: of training, for groups; `spot`: place of a matrix.
    """

    vs: str = ""
    tensor: str = ""
    stage: str = ""
    stat: str = ""
    view: str = ""
    show: tuple[str, ...] = ()
    y: str = ""
    side: str = ""
    measure: str = ""
    order: str = ""
    cells: str = ""
    step: str = ""
    spot: str = ""

    def settled(self, weights: RunWeights, other: RunWeights | None = None) -> "WeightsSelection":
        """The same selection, with valid values in place of unrecorded ones."""
        statistics = available(weights.table)
        preferred = [s for s in (RELATIVE_ERROR, "kurtosis", *statistics) if s in statistics]
        stage = self.stage if self.stage in weights.stages else result_stage(preferred[0], weights)
        measured = weights.of_stage(stage).notna().any()
        default = next((name for name in preferred if measured[name]), preferred[0])
        return replace(
            self,
            run=weights.job.run,
            vs=other.job.run if other else self.vs if self.vs in weights.stages else "",
            tensor=self.tensor if self.tensor in weights.tensors else weights.example_tensor,
            stage=stage,
            stat=self.stat if self.stat in statistics else default,
            view=valid_or_first(self.view, VIEWS),
            show=tuple(s for s in weights.stages if s in self.show)[:MAX_STAGES],
            **{
                name: valid_or_first(getattr(self, name), choices)
                for options in OPTIONS.values()
                for name, (_, choices) in options.items()
            },
        )


def main_stages(stages: Sequence[str]) -> list[str]:
    """The stages that a model passes through before the result of the method."""
    main = [s for s in stages if declared(s).main]
    return main if len(main) > 1 else [*stages]


def result_stage(stat: str, weights: RunWeights) -> str:
    """The stage that the run kept; before that the last main stage of which a statistic is
    stored, without one the last."""
    kept = queries.job(weights.job.id).kept_stage
    if kept and kept in weights.stages and kept != DENSE:
        return kept
    main = main_stages(weights.stages)
    having = [s for s in main if weights.of_stage(s)[stat].notna().any()]
    return (having or main)[-1]


@dataclass(frozen=True)
class WeightsView:
    """A valid selection, with the runs it refers to."""

    selection: WeightsSelection
    weights: RunWeights
    other: RunWeights | None

    @classmethod
    def at(cls, selection: WeightsSelection) -> "WeightsView | None":
        """The selection with valid values, by default in the newest run; None if the run has no
        statistics."""
        newest = next(real_models_first([] if selection.run else queries.runs_with_weights()), None)
        weights = weights_of(newest.run if newest else selection.run)
        if weights is None:
            return None
        is_run = selection.vs not in (weights.job.run, *weights.stages)
        other = weights_of(selection.vs) if is_run else None
        return cls(selection.settled(weights, other), weights, other)

    def counterpart(self, stage: str) -> str:
        """The stage of the other run that a stage is compared with. The kept stages of both runs
        correspond, whatever their names; other stages correspond by name."""
        if self.other is None or stage != kept_stage(self.weights, self.weights.stages):
            return stage
        kept = kept_stage(self.other, self.other.stages)
        return stage if kept == DENSE else kept


def map_chart(view: WeightsView) -> Chart:
    """A statistic of every matrix at the selected stage."""
    selection, weights, other = view.selection, view.weights, view.other
    stage, statistic = selection.stage, selection.stat
    base = None  # a stage is not compared with itself
    if other is not None:
        twin = view.counterpart(stage)
        named = f", {other.labels.get(twin, twin)}" if twin != stage else ""
        base = MapBaseline(other.of_stage(twin), f"{other.job.run}{named}")
    elif selection.vs not in ("", stage):
        base = MapBaseline(weights.of_stage(selection.vs), weights.labels[selection.vs])
    label, question = STATISTICS[statistic].label, STATISTICS[statistic].question
    chart = layer_map(weights.table, stage, statistic, base)
    if chart.frame is None or not chart.frame.iloc[:, -1].notna().any():
        why = f"{weights.labels[stage]}: {label.lower()} is not measured here."
        if base and cells(weights.table, stage, statistic)["value"].notna().any():
            why = f"{base.label}: {label.lower()} is not measured, so nothing can be compared."
        elif stage == DENSE:
            why = f"{weights.labels[DENSE]} is the reference: no {label.lower()}."
        return Chart(why, question=question)
    if base is not None:
        pair = f"{weights.job.run}, {weights.labels[stage]}, and {base.label},"
        question = f"Where do {pair} differ in {label.lower()}? No color: no difference."
    name = f"{weights.job.run}-{stage}-{statistic}" + (f"-less-{selection.vs}" if base else "")
    headline = cells_headline(chart.frame, f"Change of {lower(label)}" if base else label)
    theory = TEXTS["map"][1] if statistic == RELATIVE_ERROR else ""  # explanation of the statistic
    return replace(chart, question=question, name=name, headline=headline, theory=theory)
