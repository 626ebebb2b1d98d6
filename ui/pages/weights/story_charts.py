"""Charts of one tensor as stories draw them, from the state in the address: the histogram with the
difference below it, and the view below both. On the page the browser draws the same
(`assets/scripts/weights`)."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.statistics.tensors import (
    JOINT,
    SIDES,
    SINGULAR_VALUES,
    TensorSnapshot,
    channel_profile,
    map_profile,
)
from backend.store import tensors
from jobs.wording import times
from ui.charts.chart import Chart, axis, layout, legend_row, line_look
from ui.charts.headlines import lower
from ui.charts.heatmap import DIVERGING, color_limits
from ui.charts.series import (
    Series,
    cutoffs,
    on_shared_bins,
    overlay,
    overlay_chart,
    rebinned,
    weight_range,
)
from ui.format import count, number
from ui.pages.weights.charts import OPTIONS, TEXTS, WeightsView, main_stages
from ui.pages.weights.groups import NONE_RECORDED, TensorGroups, merged
from ui.runs.results import DENSE
from ui.runs.weights import RunWeights
from ui.theme import LIGHT, LineStyle, stage_style

RIDGE_BINS = 128
RIDGE_OVERLAP = 4  # rows that the tallest ridge covers
PANEL_TOP = 32  # pixels of the titles of panels
CELLS = {  # figure of a cell of the matrix
    "mean": "Mean |weight|",
    "max": "Largest |weight|",
    "zeros": "Exact zeros, %",
    "change": "Change of the mean |weight| from dense",
}
NOT_RECORDED = "This run has not recorded what this view draws."


class MapAxis(NamedTuple):
    """Title, start and width of an axis."""

    title: str
    low: float
    width: float


@dataclass(frozen=True)
class DrawnStage:
    """A stage of a run as a line or a panel of a chart."""

    run: RunWeights
    stage: str
    label: str
    stroke: LineStyle

    def profile(self, tensor: str, name: str) -> np.ndarray | None:
        """The last recorded values of a profile; None without any."""
        found = tensors.profiles(self.run.job.id, tensor, name)
        return next((p.values for p in reversed(found) if p.stage == self.stage), None)

    def series(self, tensor: str) -> Series | None:
        """The histogram of a tensor; None where it was not recorded."""
        found = tensors.tensor_snapshots(self.run.job.id, tensor)
        last = next((s for s in reversed(found) if s.stage == self.stage), None)
        return Series(last, self.label, self.stroke) if last else None


def own_stage(view: WeightsView, stage: str) -> DrawnStage:
    named = f", {view.weights.job.run}" if view.other else ""
    return DrawnStage(
        view.weights, stage, f"{view.weights.labels[stage]}{named}", stage_style(stage)
    )


def twin_stage(other: RunWeights, stage: str) -> DrawnStage:
    style, label = stage_style(stage), other.labels.get(stage, stage)
    stroke = LineStyle(style.color, "dashdot" if style.dash == "dot" else "dash")
    return DrawnStage(other, stage, f"{label}, {other.job.run}", stroke)


def drawn_stages(view: WeightsView, base: Collection[str]) -> list[DrawnStage]:
    """The chosen stages, by default `base`; their counterparts in the other run, the dense one only
    of another model; and last the stage of the map, in front."""
    front, other = view.selection.stage, view.other
    chosen = dict.fromkeys(stage for stage in view.selection.show or base if stage != front)
    drawn = [own_stage(view, stage) for stage in chosen]
    if other is not None:
        twins = dict.fromkeys(map(view.counterpart, (*chosen, front)))
        if other.model == view.weights.model:
            twins.pop(DENSE, None)
        drawn += [twin_stage(other, stage) for stage in twins]
    return [*drawn, own_stage(view, front)]


def reference(view: WeightsView) -> DrawnStage:
    """The stage that the chosen one is compared with: that of the address, else the one that the
    method's effect is measured from, else the first."""
    stages, front = view.weights.stages, view.selection.stage
    if view.other is not None:
        return twin_stage(view.other, view.counterpart(front))
    before = view.weights.effect["before"]
    is_earlier = before in stages and stages.index(before) < stages.index(front)
    return own_stage(view, view.selection.vs or (before if is_earlier else main_stages(stages)[0]))


# the histogram ------------------------------------------------------------------------------------


def histogram(view: WeightsView) -> Chart:
    """The tensor's histograms, and below them what the method changed."""
    selection, (question, theory) = view.selection, TEXTS["overlay"]
    base = [main_stages(view.weights.stages)[0]]
    base += [] if view.other else [reference(view).stage]
    series = [s for stage in drawn_stages(view, base) if (s := stage.series(selection.tensor))]
    if not series:
        return Chart("This tensor has not reached any of the chosen stages.", question=question)
    figure = overlay(series, log_y=selection.y == "log")
    add_difference(figure, view)
    against = f"-{view.other.job.run}" if view.other else ""
    name = f"{view.weights.job.run}{against}-{selection.tensor}-overlay"
    theory = theory if cutoffs(series) else ""
    chart = overlay_chart(series, figure=figure)
    return replace(chart, question=question, name=name, theory=theory)


def add_difference(figure: go.Figure, view: WeightsView) -> None:
    """Add the histogram after the method's effect less that before it, as a strip below."""
    effect, chosen = view.weights.effect, view.selection
    before, after = reference(view), own_stage(view, chosen.stage)
    if not (view.other or chosen.vs) and effect["after"]:
        first = main_stages(view.weights.stages)[0]
        before, after = own_stage(view, effect["before"] or first), own_stage(view, effect["after"])
    recorded = [s for each in (before, after) if (s := each.series(chosen.tensor))]
    if len(recorded) < 2 or before == after:
        return
    one, other = on_shared_bins(recorded)
    heights = other.heights - one.heights
    colors = [after.stroke.color if height > 0 else LIGHT.muted for height in heights]
    centers = (one.edges[:-1] + one.edges[1:]) / 2
    label = f"{after.label} − {lower(before.label)}"
    figure.add_bar(
        x=centers.tolist(),
        y=heights.tolist(),
        marker={"color": colors, "line": {"width": 0}},
        yaxis="y2",
        name=label,
        showlegend=False,
        hovertemplate=f"{label} %{{y:+.3f}} points<extra></extra>",
    )
    figure.update_layout(
        bargap=0,
        xaxis={"anchor": "y2"},
        yaxis={"domain": [0.32, 1]},
        yaxis2=axis(domain=[0, 0.2], nticks=3),
        annotations=[
            {"text": f"{label}, points by bin", "x": 0, "xref": "paper", "y": 0.2, "yref": "paper"}
            | {"yanchor": "bottom"}
        ],
    )


# views below it -----------------------------------------------------------------------------------


def shown_view(views: Collection[str], view: WeightsView) -> Chart:
    """The view that the address names, if it is among `views`."""
    name = view.selection.view
    if name not in views:
        return Chart("The address names another view.")
    chart = VIEWS[name](view)
    file = f"{view.weights.job.run}-{view.selection.tensor}-{name}"
    return replace(chart, question=TEXTS[name][0], name=file)


def recorded_stages(
    view: WeightsView, name: str, is_changed: bool = False
) -> list[tuple[DrawnStage, np.ndarray]]:
    """The drawn stages with a recorded profile; `is_changed`: without the dense ones."""
    base = reference(view).stage if view.selection.vs else main_stages(view.weights.stages)[0]
    found = [
        (each, each.profile(view.selection.tensor, name)) for each in drawn_stages(view, [base])
    ]
    return [(e, v) for e, v in found if v is not None and not (is_changed and e.stage == DENSE)]


def ridges(view: WeightsView) -> Chart:
    """The tensor's module in every block at the chosen stage, one histogram behind the other."""
    run, stage, tensor = view.weights, view.selection.stage, view.selection.tensor
    module = run.places[tensor][1]
    latest: dict[int, TensorSnapshot] = {}
    for each in tensors.run_snapshots(run.job.id):
        if each.stage == stage and each.module == module:
            latest[each.block] = each
    if not latest:
        return Chart(NOT_RECORDED)
    blocks, style = sorted(latest), stage_style(stage)
    low, high = weight_range([Series(one, "", style) for one in latest.values()]) or [-1.0, 1.0]
    edges = np.linspace(low, high, RIDGE_BINS + 1)
    heights = [Series(rebinned(latest[b], edges), "", style).heights for b in blocks]
    tallest = float(np.percentile([ridge.max() for ridge in heights], 80)) or 1.0
    centers = (edges[:-1] + edges[1:]) / 2
    traces = [
        go.Scatter(
            x=[low, *centers, high],
            y=[-n, *(RIDGE_OVERLAP * np.minimum(ridge / tallest, 2) - n), -n],
            fill="toself",
            fillcolor=LIGHT.paper,
            line=line_look(style, width=3 if latest[block].tensor == tensor else 1),
            mode="lines",
            hoverinfo="skip",
        )
        for n, (block, ridge) in enumerate(zip(blocks, heights, strict=True))
    ]
    step = max(1, len(blocks) // 8)
    rows = axis("Block", tickvals=[-n for n in range(0, len(blocks), step)])
    rows |= {"ticktext": [str(block) for block in blocks[::step]], "showgrid": False}
    figure = go.Figure(traces, layout(xaxis=axis("Weight"), yaxis=rows))
    note = f"n = {len(blocks)} blocks, one axis (±{number(high)}), exact zeros left out."
    short = module.rpartition(".")[2]
    return Chart(figure, note=note, headline=f"{short} in all blocks: {lower(run.labels[stage])}")


def panels(
    drawn: Sequence[tuple[str, np.ndarray]],
    x: MapAxis,
    y: MapAxis,
    *,
    even: bool = False,
    **options: Any,
) -> go.Figure:
    """Maps side by side on one color scale, which diverges from 0 if `even`."""
    figure = make_subplots(1, len(drawn), subplot_titles=[label for label, _ in drawn])
    for column, (_, values) in enumerate(drawn, 1):
        rows, columns = values.shape
        heat = go.Heatmap(
            z=np.where(np.isfinite(values), values.astype(float), np.nan),
            x0=x.low + x.width / columns / 2,
            dx=x.width / columns,
            y0=y.low + y.width / rows / 2,
            dy=y.width / rows,
            coloraxis="coloraxis",
            hovertemplate="%{z:.4g}<extra></extra>",
        )
        figure.add_trace(heat, 1, column)
    low, high = color_limits(np.concatenate([values.ravel() for _, values in drawn]), even)
    colors = {"cmin": low, "cmax": high, "colorscale": DIVERGING if even else "viridis"}
    figure.update_layout(layout(top=PANEL_TOP, coloraxis=colors | {"colorbar": {"thickness": 8}}))
    figure.update_annotations(font_size=12)
    figure.update_xaxes(axis(x.title, showgrid=False))
    figure.update_yaxes(axis(showgrid=False, showticklabels=False, **options))
    figure.update_yaxes(axis(y.title, showticklabels=True), col=1)
    return figure


def matrix(view: WeightsView) -> Chart:
    """Cells of the matrix, stage by stage."""
    chosen = view.selection
    if chosen.spot:
        return Chart("Stories show the whole matrix, not single weights.")
    found = recorded_stages(view, map_profile(chosen.cells), chosen.cells == "change")
    if not found:
        return Chart(NOT_RECORDED)
    stage, cells = found[-1]
    profiles = (stage.profile(chosen.tensor, channel_profile(side, "norm")) for side in SIDES)
    outputs, inputs = (
        n if profile is None else len(profile)
        for n, profile in zip(cells.shape, profiles, strict=True)
    )
    scale, figure = 100 if chosen.cells == "zeros" else 1, CELLS[chosen.cells]
    chart = panels(
        [(stage.label, scale * values) for stage, values in found],
        MapAxis("Input channel", 0, inputs),
        MapAxis("Output channel", 0, outputs),
        even=chosen.cells == "change",
        autorange="reversed",
    )
    note = f"Colors: {lower(figure)}. n = {count(outputs * inputs)} weights."
    return Chart(chart, note=note, headline=f"{stage.label}: {lower(figure)}")


def joint(view: WeightsView) -> Chart:
    """Weights after each stage by their dense value, on a log scale of colors."""
    found = recorded_stages(view, JOINT, is_changed=True)
    series = found and found[-1][0].series(view.selection.tensor)
    if not series:
        return Chart(NOT_RECORDED)
    with np.errstate(divide="ignore"):
        drawn = [(stage.label, np.log10(values.T.astype(float))) for stage, values in found]
    low, width = series.snapshot.lo, series.snapshot.hi - series.snapshot.lo
    figure = panels(
        drawn, MapAxis("Weight, dense", low, width), MapAxis("Weight after", low, width)
    )
    note = "Colors: log10 of the number of weights. On the diagonal a weight is unchanged."
    return Chart(figure, note=note, headline=f"{drawn[-1][0]}: weights by their dense value")


def lines(
    drawn: Sequence[tuple[DrawnStage, np.ndarray]], x: dict[str, Any], y: dict[str, Any]
) -> go.Figure:
    traces = [
        go.Scatter(
            x=np.arange(1, len(values) + 1),
            y=values.astype(float),
            name=stage.label,
            mode="lines",
            line=line_look(stage.stroke),
            hovertemplate="%{y:.4g}<extra>%{fullData.name}</extra>",
        )
        for stage, values in drawn
    ]
    return go.Figure(traces, layout(xaxis=x, yaxis=y, hovermode="x unified", **legend_row()))


def channels(view: WeightsView) -> Chart:
    """A figure of every channel, by size or by number."""
    chosen, names = view.selection, OPTIONS["channels"]
    found = recorded_stages(view, channel_profile(chosen.side, chosen.measure))
    if not found:
        return Chart(NOT_RECORDED)
    scale, by_size = 100 if chosen.measure == "zeros" else 1, chosen.order == "size"
    drawn = [
        (stage, scale * (np.sort(values)[::-1] if by_size else values)) for stage, values in found
    ]
    kind, measure = names["side"][1][chosen.side], names["measure"][1][chosen.measure]
    across = "Rank, each stage from its largest channel on" if by_size else "Number of the channel"
    figure = lines(drawn, axis(across), axis(measure, log=chosen.y == "log"))
    front, values = drawn[-1]
    ratio = float(values.max() / (np.median(values) or np.nan))
    told = f": the largest is {times(ratio)} the median" if ratio == ratio else ""
    note = f"n = {count(len(values))} channels."
    return Chart(figure, note=note, headline=f"{front.label}, {lower(kind)}{told}")


def spectrum(view: WeightsView) -> Chart:
    """Singular values by rank, both on log axes."""
    found = recorded_stages(view, SINGULAR_VALUES)
    if not found:
        return Chart(NOT_RECORDED)
    figure = lines(found, axis("Rank", log=True), axis("Singular value", log=True))
    ranks = [float((values.astype(float) ** 2).sum() / values[0] ** 2) for _, values in found]
    told = " → ".join(number(rank) for rank in dict.fromkeys((ranks[0], ranks[-1])))
    note = f"n = {len(found[0][1])} singular values."
    return Chart(figure, note=note, headline=f"{found[-1][0].label}: stable rank {told}")


def groups(view: WeightsView) -> Chart:
    """Changes of the group magnitudes: as a map, and sorted at every recorded step."""
    chosen = view.selection
    read = TensorGroups.read(view.weights, chosen.tensor, chosen.stage)
    if not read.changes:
        return Chart(NONE_RECORDED)
    steps = sorted(read.changes)
    step = int(chosen.step) if chosen.step.isdecimal() else steps[-1]
    step = min(steps, key=lambda at: abs(at - step))
    order = np.argsort(read.changes[steps[-1]].mean(1), kind="stable")
    figure = panels(
        [("Change of the magnitude, %", merged(read.changes[step][order]))],
        MapAxis("Group of inputs", 0, read.changes[step].shape[1]),
        MapAxis("Row, sorted by its change", 0, len(order)),
        even=True,
    )
    total, where = count(read.changes[step].size), view.weights.tensors[chosen.tensor]
    note = f"{where}: n = {total} groups, step {step}."
    return Chart(figure, note=note, headline=read.title)


VIEWS: dict[str, Callable[[WeightsView], Chart]] = {
    view.__name__: view for view in (ridges, matrix, joint, channels, spectrum, groups)
}
