"""What quality costs: perplexity of the kept stage against size, zeros or speed, one dot a run.

The Pareto front is the runs no other run beats on one axis without losing on the other. All dots
of a picture stand for the same base model measured on the same text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from jobs.metrics import METRICS, Metric
from ui.charts.template import axis, layout, legend, log_axis
from ui.format import esc, number
from ui.runs.results import format_value
from ui.theme import BLUE, GREEN, LIGHT, OKABE_ITO, PINK, VERMILLION

PLAIN, SMALLEST, LARGEST = 11, 8, 24  # pixels
LABELLED = 8  # up to so many runs on the front are named
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
COLOURS = (BLUE, VERMILLION, GREEN, PINK, *OKABE_ITO)
DECADE = 0.15  # of a power of ten: less than that is drawn on an even axis


@dataclass(frozen=True)
class ParetoPoint:
    """One run.

    Attributes:
        x: what it costs, in the form of the axis; y: its perplexity.
        speed: tokens per second, where it was measured.
    """

    run: str
    label: str
    kind: str
    x: float
    y: float
    speed: float | None = None


def pareto_front(points: Sequence[ParetoPoint], larger_x: bool) -> list[ParetoPoint]:
    """The Pareto front from left to right: lowest `y`, with `x` as small as can be, or as large; a
    few bytes in a file's head make no run smaller."""
    sign = -1 if larger_x else 1
    best, found = math.inf, []
    for point in sorted(points, key=lambda p: (sign * float(f"{p.x:.3g}"), p.y)):
        if point.y < best:
            best = point.y
            found.append(point)
    return sorted(found, key=lambda p: p.x)


def tradeoff(points: Sequence[ParetoPoint], x: Metric, dense: float | None) -> go.Figure:
    """The picture. A click on a dot tells its run as `customdata`.

    Args:
        x: the metric on the horizontal axis.
        dense: perplexity of the model before compression.
    """
    best = pareto_front(points, x.better == "higher")
    kinds = list(dict.fromkeys(p.kind for p in points))
    scale = 100.0 if x.form == "share" else 1e-6 if x.form == "bytes" else 1.0
    ys = [p.y for p in points] + ([dense] if dense else [])
    height = _height(ys)
    several = len(kinds) > 1
    return go.Figure(
        [_front_line(best, x, scale), *[
            _dots([p for p in points if p.kind == kind], best, x, scale, i)
            for i, kind in enumerate(kinds)
        ]],
        layout(
            view=f"{x.name}",
            top=32 if several else 8,
            xaxis=axis(
                _title(x), showgrid=False, range=_width([scale * p.x for p in points]), nticks=5,
                tickangle=0,
            ),
            yaxis=height,
            shapes=_dense_line(dense),
            annotations=_dense_label(dense, height.get("type") == "log"),
            hovermode="closest",
            showlegend=several,
            legend=legend(orientation="h"),
        ),
    )  # fmt: skip


def _title(x: Metric) -> str:
    hint = {"higher": "more is better", "lower": "less is better"}.get(x.better, "")
    unit = f"{x.label}, MB" if x.form == "bytes" else x.title
    return f"{unit} ({hint})" if hint else unit


def _width(xs: Sequence[float]) -> list[float]:
    """All dots, and room for their names."""
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    room = max(0.12 * (high - low), 0.02 * abs(high)) or 1.0
    return [low - room, high + room]


def _height(ys: Sequence[float]) -> dict[str, object]:
    """A log axis where perplexities span enough of one; its ticks are round numbers."""
    title, low, high = "Perplexity", min(ys, default=1.0), max(ys, default=2.0)
    if math.log10(high / low) < DECADE:
        return axis(title, nticks=5)
    room = 0.08 * math.log10(high / low)
    span = [math.log10(low) - room, math.log10(high) + 2 * room]
    return log_axis(title, span)


def _front_line(best: Sequence[ParetoPoint], x: Metric, scale: float) -> go.Scatter:
    """Steps: between two runs of the front, only the worse is to be had."""
    return go.Scatter(
        x=[scale * p.x for p in best],
        y=[p.y for p in best],
        mode="lines",
        line={
            "color": LIGHT.muted,
            "width": 1,
            "shape": "vh" if x.better == "higher" else "hv",
        },
        hoverinfo="skip",
        showlegend=False,
    )


def _dots(
    points: Sequence[ParetoPoint], best: Sequence[ParetoPoint], x: Metric, scale: float, place: int
) -> go.Scatter:
    colour = COLOURS[place % len(COLOURS)]
    fastest = max((p.speed or 0.0 for p in points), default=0.0)
    held, named = {p.run for p in best}, {p.run for p in best[:LABELLED]}
    xs = [p.x for p in best]
    middle = (min(xs, default=0.0) + max(xs, default=0.0)) / 2
    return go.Scatter(
        x=[scale * p.x for p in points],
        y=[p.y for p in points],
        name=points[0].kind if points else "",
        customdata=[p.run for p in points],
        mode="markers+text",
        marker={
            "size": [_size(p.speed, fastest) for p in points],
            "color": [colour if p.run in held else "rgba(0,0,0,0)" for p in points],
            "symbol": SYMBOLS[place % len(SYMBOLS)],
            "line": {"color": colour, "width": 2},
            "opacity": 1.0,
        },
        text=[esc(p.label) if p.run in named else "" for p in points],
        textposition=["bottom left" if p.x > middle else "bottom right" for p in points],
        textfont={"size": 12, "color": LIGHT.text},
        hovertext=[_hover(p, x) for p in points],
        hovertemplate="%{hovertext}<extra></extra>",
        cliponaxis=False,
    )


def _size(speed: float | None, fastest: float) -> float:
    """The area of a dot is its speed."""
    if not fastest:
        return PLAIN
    return max(SMALLEST, LARGEST * math.sqrt((speed or 0.0) / fastest))


def _hover(point: ParetoPoint, x: Metric) -> str:
    unit = " %" if x.form == "share" else ""
    lines = [
        f"<b>{esc(point.run)}</b> {esc(point.label)}",
        f"Perplexity {number(point.y)}",
        f"{x.label} {format_value(x, point.x)}{unit}",
    ]
    if point.speed:
        lines.append(f"{METRICS['tokens_per_second'].label} {number(point.speed, 3)} tokens/s")
    return "<br>".join(lines)


def _dense_line(dense: float | None) -> list[dict[str, object]]:
    line = {"color": LIGHT.muted, "width": 1, "dash": "dash"}
    shape = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": dense, "y1": dense}
    return [shape | {"line": line}] if dense else []


def _dense_label(dense: float | None, log: bool) -> list[dict[str, object]]:
    if not dense:
        return []
    return [  # unlike a shape, it wants the logarithm on a log axis
        {
            "text": f"dense {number(dense)}", "xref": "paper", "x": 1, "xanchor": "right",
            "y": math.log10(dense) if log else dense, "yanchor": "top", "showarrow": False,
            "font": {"size": 12, "color": LIGHT.muted},
        }
    ]  # fmt: skip
