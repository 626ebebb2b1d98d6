"""What is looked at of a run's weights: names in the address, which `state.js` reads and writes;
and what stories show of it: the map, the histogram and perplexity, drawn by Python. On the page
the browser draws them (`assets/scripts/weights`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.statistics.tensors import RELATIVE_ERROR, TensorSnapshot
from backend.store import queries, tensors
from ui.charts.chart import Chart
from ui.charts.headlines import cells_headline, lower
from ui.charts.heatmap import STATISTICS, MapBaseline, available, cells, layer_map
from ui.charts.series import MAX_STAGES, Series, cutoffs, overlay, overlay_chart
from ui.charts.stages import perplexities, perplexity_chart
from ui.runs.results import real_models_first
from ui.runs.weights import DENSE, RunWeights, kept_stage, weights_of
from ui.theme import LineStyle, declared, stage_style
from ui.widgets.explorer import Selection, valid_or_first

DISTRIBUTIONS = ("ridges", "statistics")  # views of the histograms themselves
VIEWS = {  # below the map and the histogram
    "ridges": "Ridges",
    "magnitudes": "Magnitudes",
    "matrix": "Matrix",
    "joint": "Before/after",
    "channels": "Channels",
    "spectrum": "Spectrum",
    "inputs": "Inputs",
    "statistics": "All statistics",
}
OPTIONS: dict[str, dict[str, tuple[str, dict[str, str]]]] = {  # view -> field -> label, choices
    "matrix": {
        "cells": (
            "Cells",
            {
                "mean": "Mean",
                "max": "Largest",
                "zeros": "Zeros",
                "change": "Change",
            },
        )
    },
    "channels": {
        "side": ("Channels", {"row": "Output channels", "column": "Input channels"}),
        "measure": ("Figure", {"norm": "Norm", "max": "Largest magnitude", "zeros": "Exact zeros"}),
        "order": ("Order", {"size": "By size", "index": "By number"}),
    },
    "inputs": {
        "flow": (
            "Figure",
            {
                "inputs": "Inputs",
                "weights": "Weights",
                "product": "Product",
            },
        )
    },
}
AGAINST = {"": "Nothing", "dense": "Dense", "run": "Other run"}
TEXTS = {  # chart -> the question it answers, and what the literature says about such charts
    "map": (
        "",
        "Layers differ in how much compression they bear, which is why some methods give each a "
        "sparsity (OWL, Yin et al. 2023) or bits (HAWQ, Dong et al. 2019) of its own.",
    ),
    "overlay": (
        "What did each step do to the distribution of this tensor's weights?",
        "Magnitude pruning removes the middle of the distribution (Han et al. 2015); the small "
        "weights that stay between the dotted lines meet large inputs.",
    ),
    "ridges": (
        "How does the distribution change from block to block, and from stage to stage?",
        "A pruned model that is made dense again prunes better than the original (SDS, Li et al. "
        "2025): its middle peak holds what can go.",
    ),
    "magnitudes": (
        "How large are the weights besides zero, on a scale that shows the small ones?",
        "Scores of weight times input keep small weights that meet large inputs (Wanda, Sun et al. "
        "2023): the tail below the threshold.",
    ),
    "channels": (
        "Are there outlier channels, and have they as many zeros as the others?",
        "A few features are far larger than all others, and rounding or pruning them costs most "
        "(Dettmers et al. 2022).",
    ),
    "matrix": (
        "Where in the matrix are the large weights, and where did they change?",
        "Bright columns are input features that all outputs read, like the outlier features of "
        "Dettmers et al. (2022).",
    ),
    "joint": (
        "What became of the weights, each by what it was in the dense tensor?",
        "To remove or round a weight at the least cost, the others have to change, too (Optimal "
        "Brain Surgeon, Hassibi and Stork 1993): what lies off the diagonal.",
    ),
    "spectrum": (
        "How many directions carry the weights, and how heavy is the tail?",
        "Well-trained layers have heavy-tailed spectra with α between 2 and 6 (Martin and Mahoney "
        "2021), here fitted as by Clauset, Shalizi and Newman (2009).",
    ),
    "inputs": (
        "Which input channels are large in every block? Are their weights smaller to compensate?",
        "The same few channels are large in nearly all blocks (Dettmers et al. 2022); Wanda scores "
        "a weight by its product with the norm of its input (Sun et al. 2023).",
    ),
}


@dataclass(frozen=True)
class WeightsSelection(Selection):
    """What is looked at, as far as stories draw it. (Gradio keeps the name "page" of an address for
    itself.)

    Attributes:
        run, vs: the run, and the one it is compared with.
        tensor: full name; `stage`, `stat`, `against`: of the map.
        show, y: stages and height axis of the histogram; `view`: the panel below it.
    """

    vs: str = ""
    tensor: str = ""
    stage: str = ""
    stat: str = ""
    against: str = ""
    view: str = ""
    show: tuple[str, ...] = ()
    y: str = ""

    def settled(self, weights: RunWeights, other: RunWeights | None = None) -> "WeightsSelection":
        """The same, with everything that is not stored replaced by what is."""
        statistics = available(weights.table)
        preferred = (RELATIVE_ERROR, "kurtosis", *statistics)
        default = next(name for name in preferred if name in statistics)
        stat = self.stat if self.stat in statistics else default
        return replace(
            self,
            run=weights.job.run,
            vs=other.job.run if other else "",
            tensor=self.tensor if self.tensor in weights.tensors else weights.example_tensor,
            stage=self.stage if self.stage in weights.stages else last_with(stat, weights),
            stat=stat,
            against=valid_or_first(self.against, AGAINST) if self.against != "run" or other else "",
            view=valid_or_first(self.view, VIEWS),
            show=tuple(s for s in weights.stages if s in self.show)[:MAX_STAGES]
            or default_stages(weights, other is not None),
        )


def main_stages(stages: Sequence[str]) -> list[str]:
    """The stages a model passes through on its way to what a method makes of it."""
    main = [s for s in stages if declared(s).main]
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


@dataclass(frozen=True)
class WeightsView:
    """A settled selection, and the runs it is about."""

    selection: WeightsSelection
    weights: RunWeights
    other: RunWeights | None

    @classmethod
    def at(cls, selection: WeightsSelection) -> "WeightsView | None":
        """The selection settled on what is stored, without a run of the newest; None where the run
        has no statistics."""
        newest = next(real_models_first([] if selection.run else queries.runs_with_weights()), None)
        weights = weights_of(newest.run if newest else selection.run)
        if weights is None:
            return None
        other = weights_of(selection.vs) if selection.vs != weights.job.run else None
        return cls(selection.settled(weights, other), weights, other)

    def counterpart(self, stage: str) -> str:
        """The stage of the other run to compare a stage with: what it kept with what this run kept,
        whatever their methods call that; any other stage with the same."""
        if self.other is None or stage != kept_stage(self.weights, self.weights.stages):
            return stage
        kept = kept_stage(self.other, self.other.stages)
        return stage if kept == DENSE else kept

    def series(self) -> list[Series]:
        """The chosen stages of the tensor, then their counterparts in the other run; the dense
        tensor, which is the same in both where the model is, once."""
        selection, named = self.selection, f", {self.weights.job.run}" if self.other else ""
        own = _snapshots(self.weights, selection.tensor)
        drawn = [
            Series(own[s], f"{self.weights.labels[s]}{named}", stage_style(s))
            for s in selection.show
            if s in own
        ]
        if self.other is None:
            return drawn
        theirs = _snapshots(self.other, selection.tensor)
        same = {DENSE} if self.other.model == self.weights.model else set[str]()
        for stage in dict.fromkeys(map(self.counterpart, selection.show)):
            if stage in theirs and stage not in same:
                style, label = stage_style(stage), self.other.labels.get(stage, stage)
                stroke = LineStyle(style.color, "dashdot" if style.dash == "dot" else "dash")
                drawn.append(Series(theirs[stage], f"{label}, {self.other.job.run}", stroke))
        return drawn


def _snapshots(run: RunWeights, tensor: str) -> dict[str, TensorSnapshot]:
    """A tensor by stage; of several steps the last."""
    return {s.stage: s for s in tensors.tensor_snapshots(run.job.id, tensor)}


def map_chart(view: WeightsView) -> Chart:
    """A statistic of every matrix at the chosen stage."""
    selection, weights, other = view.selection, view.weights, view.other
    stage, statistic = selection.stage, selection.stat
    base = None  # nothing for a stage that would be compared with itself
    if selection.against == "run" and other is not None:
        twin = view.counterpart(stage)
        named = f", {other.labels.get(twin, twin)}" if twin != stage else ""
        base = MapBaseline(other.of_stage(twin), f"{other.job.run}{named}")
    elif selection.against == DENSE and stage != DENSE:
        base = MapBaseline(weights.of_stage(DENSE), weights.labels.get(DENSE, DENSE))
    label, question = STATISTICS[statistic].label, STATISTICS[statistic].question
    chart = layer_map(weights.table, stage, statistic, selection.tensor, base)
    if chart.frame is None or not chart.frame.iloc[:, -1].notna().any():
        why = f"{weights.labels[stage]}: {label.lower()} is not measured here."
        if base and cells(weights.table, stage, statistic)["value"].notna().any():
            why = f"{base.label}: {label.lower()} is not measured, so nothing can be compared."
        elif stage == DENSE:
            compared = "it is what the others are compared with"
            why = f"{weights.labels[DENSE]} has no {label.lower()}: {compared}."
        return Chart(why, question=question)
    if base is not None:
        pair = f"{weights.job.run}, {weights.labels[stage]}, and {base.label},"
        question = f"Where do {pair} differ in {label.lower()}? No color: no difference."
    name = f"{weights.job.run}-{stage}-{statistic}" + (f"-less-{selection.against}" if base else "")
    headline = cells_headline(chart.frame, f"Change of {lower(label)}" if base else label)
    theory = TEXTS["map"][1] if statistic == RELATIVE_ERROR else ""  # of what layers bear
    return replace(chart, question=question, name=name, headline=headline, theory=theory)


def tensor_chart(view: WeightsView) -> Chart:
    """The tensor's histograms."""
    series, asked = view.series(), view.selection.view
    question, of_lines = TEXTS["overlay"]
    if not series:
        not_yet = "This tensor has not reached any of the chosen stages."
        return Chart(not_yet, question=question)
    figure = overlay(series, log_y=view.selection.y == "log")
    drawn = f"The view {VIEWS[asked]} is drawn on the page Weights only"
    elsewhere = "" if asked in DISTRIBUTIONS else f"{drawn}; this is the histogram of its tensor."
    chart = overlay_chart(series, elsewhere, figure=figure)
    against = f"-{view.other.job.run}" if view.other else ""
    name = f"{view.weights.job.run}{against}-{view.selection.tensor}-overlay"
    theory = of_lines if cutoffs(series) else ""
    return replace(chart, question=question, name=name, theory=theory)


def stages_chart(view: WeightsView) -> Chart:
    """Perplexity by stage of the run."""
    weights = view.weights
    results = perplexities(queries.results([weights.job.id]), weights.labels)
    if not results:
        return Chart("Perplexity appears here as the stages are measured.")
    return perplexity_chart(results, weights.labels)
