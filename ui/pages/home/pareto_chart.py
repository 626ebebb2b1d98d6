"""Perplexity of the kept stage against size, sparsity or speed, one dot a run, all of one base
model on the same text. On the Pareto front are runs that no other beats in one without losing in
the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from jobs.metrics import PERPLEXITY, TOKENS_PER_SECOND, Metric, metric
from ui.charts.chart import Chart
from ui.charts.dots import dots, log_span
from ui.charts.headlines import of_front
from ui.charts.template import axis, layout, legend_row, log_axis, reference_line
from ui.format import esc, number
from ui.runs.results import format_value
from ui.theme import BLUE, GREEN, LIGHT, OKABE_ITO, PINK, VERMILLION
from ui.widgets.html import WIDGETS

QUALITY, SPEED = metric(PERPLEXITY), metric(TOKENS_PER_SECOND)
PLAIN, SMALLEST, LARGEST = 11, 8, 24  # pixels
LABELLED = 8  # up to so many runs on the front are named
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
COLOURS = (BLUE, VERMILLION, GREEN, PINK, *OKABE_ITO)
DECADE = 0.15  # of a power of ten: less than that is drawn on an even axis


@dataclass(frozen=True)
class ParetoPoint:
    """One run: cost `x` as stored, perplexity `y`, `speed` in tokens per second."""

    run: str
    label: str
    kind: str
    x: float
    y: float
    speed: float | None = None


def pareto_front(points: Sequence[ParetoPoint], larger_x: bool) -> list[ParetoPoint]:
    """Pareto front from left to right: lowest `y`, smallest (or largest) `x`. `x` is rounded, as
    file headers differ by a few bytes."""
    sign = -1 if larger_x else 1
    best, front = math.inf, []
    for point in sorted(points, key=lambda p: (sign * float(f"{p.x:.3g}"), p.y)):
        if point.y < best:
            best = point.y
            front.append(point)
    return sorted(front, key=lambda p: p.x)


def tradeoff(
    points: Sequence[ParetoPoint], x: Metric, dense: float | None, note: str = ""
) -> Chart:
    """Perplexity over cost. A click on a dot gives its run as `customdata`; `dense`: perplexity
    before compression."""
    best = pareto_front(points, x.better == "higher")
    kinds = list(dict.fromkeys(p.kind for p in points))
    traces = [
        _dots([p for p in points if p.kind == kind], best, x, place)
        for place, kind in enumerate(kinds)
    ]
    front = go.Scatter(  # steps: between two runs of the front, only the worse is to be had
        x=[scale_of(x) * p.x for p in best], y=[p.y for p in best], mode="lines",
        line={"color": LIGHT.muted, "width": 1, "shape": "vh" if x.better == "higher" else "hv"},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    ys = [p.y for p in points] + ([dense] if dense else [])
    log = math.log10(max(ys, default=2.0) / min(ys, default=1.0)) >= DECADE
    up = log_axis("Perplexity", log_span(ys, right=0.2)) if log else axis("Perplexity", nticks=5)
    hint = f" ({x.better} is better)" if x.better in ("higher", "lower") else ""
    width = _width([scale_of(x) * p.x for p in points])
    across = axis(_unit_title(x) + hint, showgrid=False, range=width, nticks=5, tickangle=0)
    row = legend_row() if len(kinds) > 1 else {}
    looks = layout(view=x.name, xaxis=across, yaxis=up, hovermode="closest", **row)
    figure = go.Figure([front, *traces], looks)
    if dense:
        figure.add_shape(reference_line(y=dense))
        figure.add_annotation(  # unlike a shape, it wants the logarithm on a log axis
            text=f"dense {number(dense)}", xref="paper", x=1, xanchor="right", yanchor="top",
            y=math.log10(dense) if log else dense,
        )  # fmt: skip
    return Chart(figure, _frame(points, x), note, headline=of_front(len(best), len(points)))


def scale_of(x: Metric) -> float:
    """Factor from a stored value to the unit of the axis: per cent, MB, or 1."""
    return {"share": 100.0, "bytes": 1e-6}.get(x.form, 1.0)


def _unit_title(x: Metric) -> str:
    return f"{x.label}, MB" if x.form == "bytes" else x.title


def _frame(points: Sequence[ParetoPoint], x: Metric) -> pd.DataFrame:
    links = pd.Series([WIDGETS.run_link(p) for p in points], dtype=object)  # stay `Markup`
    columns = ["Setting", "Kind", QUALITY.title, SPEED.title, _unit_title(x)]
    figures = [(p.label, p.kind, p.y, p.speed, scale_of(x) * p.x) for p in points]
    frame = pd.DataFrame(figures, columns=columns)
    frame.insert(0, "Run", links)
    return frame.loc[:, ~frame.columns.duplicated()]


def _width(xs: Sequence[float]) -> list[float]:
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    room = max(0.12 * (high - low), 0.02 * abs(high)) or 1.0
    return [low - room, high + room]


def _dots(
    points: Sequence[ParetoPoint], best: Sequence[ParetoPoint], x: Metric, place: int
) -> go.Scatter:
    colour = COLOURS[place % len(COLOURS)]
    fastest = max((p.speed or 0.0 for p in points), default=0.0)
    on_front, named = {p.run for p in best}, {p.run for p in best[:LABELLED]}
    xs = [p.x for p in best]
    middle = (min(xs, default=0.0) + max(xs, default=0.0)) / 2
    fill = [colour if p.run in on_front else "rgba(0,0,0,0)" for p in points]
    return dots(
        [scale_of(x) * p.x for p in points],
        [p.y for p in points],
        colour,
        SYMBOLS[place % len(SYMBOLS)],
        [_hover(p, x) for p in points],
        name=points[0].kind,
        customdata=[p.run for p in points],
        text=[esc(p.label) if p.run in named else "" for p in points],
        textposition=["bottom left" if p.x > middle else "bottom right" for p in points],
        textfont={"color": LIGHT.text},
    ).update(
        mode="markers+text", marker_size=[_size(p.speed, fastest) for p in points],
        marker_color=fill, marker_opacity=1.0,
    )  # fmt: skip


def _size(speed: float | None, fastest: float) -> float:
    if not fastest:
        return PLAIN
    return max(SMALLEST, LARGEST * math.sqrt((speed or 0.0) / fastest))


def _hover(point: ParetoPoint, x: Metric) -> str:
    unit = " %" if x.form == "share" else ""
    speed = f"<br>{SPEED.label} {number(point.speed, 3)} tokens/s" if point.speed else ""
    return (
        f"<b>{esc(point.run)}</b> {esc(point.label)}<br>Perplexity {number(point.y)}"
        f"<br>{x.label} {format_value(x, point.x)}{unit}{speed}"
    )
