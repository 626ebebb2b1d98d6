"""What reports show of weights: the map, the histogram and perplexity, drawn by Python. On the page
the browser draws them (`assets/scripts/weights`)."""

from dataclasses import dataclass, replace

import gradio as gr

from backend.statistics.tensors import RELATIVE_ERROR, TensorSnapshot
from backend.store import queries, tensors
from ui.charts.chart import Chart
from ui.charts.headlines import lower, of_cells
from ui.charts.heatmap import STATISTICS, MapBaseline, cells, layer_map
from ui.charts.series import Series, cutoffs, overlay, overlay_chart
from ui.charts.stages import perplexities, perplexity_chart
from ui.pages.weights.selection import DISTRIBUTIONS, TEXTS, VIEWS, WeightsSelection
from ui.runs.results import real_first
from ui.runs.weights import DENSE, RunWeights, kept_stage, weights_of
from ui.theme import LineStyle, stage_style

NOT_YET = "This tensor has not reached any of the chosen stages."
ON_THE_PAGE = "The view {} is drawn on the page Weights only; this is the histogram of its tensor."
NO_PERPLEXITY = "Perplexity appears here as the stages are measured."
OTHER_DASH = {"solid": "dash", "dot": "dashdot"}  # of the run that is compared with


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
        newest = next(real_first([] if selection.run else queries.runs_with_weights()), None)
        weights = weights_of(newest.run if newest else selection.run)
        if weights is None:
            return None
        other = weights_of(selection.vs) if selection.vs != weights.job.run else None
        return cls(selection.settled(weights, other), weights, other)

    @classmethod
    def of_address(cls, request: gr.Request) -> "WeightsView | None":
        return cls.at(WeightsSelection.from_address(request))

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
                stroke = LineStyle(style.colour, OTHER_DASH.get(style.dash, "dash"))
                drawn.append(Series(theirs[stage], f"{label}, {self.other.job.run}", stroke))
        return drawn


def _snapshots(run: RunWeights, tensor: str) -> dict[str, TensorSnapshot]:
    """A tensor by stage; of several steps the last."""
    return {s.stage: s for s in tensors.tensor_snapshots(run.job.id, tensor)}


def map_chart(view: WeightsView) -> Chart:
    """A statistic of every matrix at the chosen stage."""
    selection, weights = view.selection, view.weights
    stage, statistic, base = selection.stage, selection.stat, _baseline(view)
    label, question = STATISTICS[statistic].label, STATISTICS[statistic].question
    chart = layer_map(weights.table, stage, statistic, selection.tensor, base)
    if chart.frame is None or not chart.frame.iloc[:, -1].notna().any():
        return Chart(_not_measured(view, base), question=question)
    if base is not None:
        pair = f"{weights.job.run}, {weights.labels[stage]}, and {base.label},"
        question = f"Where do {pair} differ in {label.lower()}? No colour: no difference."
    name = f"{weights.job.run}-{stage}-{statistic}" + (f"-less-{selection.against}" if base else "")
    headline = of_cells(chart.frame, f"Change of {lower(label)}" if base else label)
    theory = TEXTS["map"][1] if statistic == RELATIVE_ERROR else ""  # of what layers bear
    return replace(chart, question=question, name=name, headline=headline, theory=theory)


def _not_measured(view: WeightsView, base: MapBaseline | None) -> str:
    """Why the map is empty: the stage lacks the statistic, or what it is compared with does."""
    selection, weights = view.selection, view.weights
    label = STATISTICS[selection.stat].label.lower()
    if base and cells(weights.table, selection.stage, selection.stat)["value"].notna().any():
        return f"{base.label}: {label} is not measured, so nothing can be compared."
    if selection.stage == DENSE:
        return f"{weights.labels[DENSE]} has no {label}: it is what the others are compared with."
    return f"{weights.labels[selection.stage]}: {label} is not measured here."


def _baseline(view: WeightsView) -> MapBaseline | None:
    """What the map is compared with; nothing for a stage that would be compared with itself."""
    selection, weights, other = view.selection, view.weights, view.other
    if selection.against == "run" and other is not None:
        twin = view.counterpart(selection.stage)
        named = f", {other.labels.get(twin, twin)}" if twin != selection.stage else ""
        return MapBaseline(other.of_stage(twin), f"{other.job.run}{named}")
    if selection.against == DENSE and selection.stage != DENSE:
        return MapBaseline(weights.of_stage(DENSE), weights.labels.get(DENSE, DENSE))
    return None


def tensor_chart(view: WeightsView) -> Chart:
    """The tensor's histograms."""
    series, asked = view.series(), view.selection.view
    question, of_lines = TEXTS["overlay"]
    if not series:
        return Chart(NOT_YET, question=question)
    figure = overlay(series, log_y=view.selection.y == "log")
    elsewhere = "" if asked in DISTRIBUTIONS else ON_THE_PAGE.format(VIEWS[asked])
    chart = overlay_chart(series, elsewhere, figure=figure)
    against = f"-{view.other.job.run}" if view.other else ""
    name = f"{view.weights.job.run}{against}-{view.selection.tensor}-overlay"
    theory = of_lines if cutoffs(series) else ""
    return replace(chart, question=question, name=name, theory=theory)


def stages_chart(view: WeightsView) -> Chart:
    """Perplexity by stage of the run."""
    weights = view.weights
    results = perplexities(queries.results([weights.job.id]), weights.labels)
    return perplexity_chart(results, weights.labels) if results else Chart(NO_PERPLEXITY)
