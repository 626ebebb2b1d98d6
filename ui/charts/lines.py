"""Line charts over steps: the curves of one run, or one curve of several runs. And dot plots: a row
for each stage or setting, a dot for each value."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.metric_key import MetricKey
from backend.store.frames import REDUCED
from jobs.metrics import metric
from ui.charts.chart import axis, category_axis, layout, legend_row, line_look
from ui.theme import LineStyle

MAX_POINTS = 2000  # of a line


class Line(NamedTuple):
    """One line; its points have the columns step and value."""

    label: str
    points: pd.DataFrame
    stroke: LineStyle


def points_words(key: MetricKey, several: bool = False) -> str:
    """What the points of a curve, or of each of several, are, behind their number."""
    over, points = metric(key).over, "points per line" if several else "points"
    return f"{points}, each the mean over {over}" if over else points


def reduced_note(points: pd.DataFrame) -> str:
    """What a chart has to say of curves that were too long to be drawn whole."""
    if not points.attrs.get(REDUCED):
        return ""
    return " Long curves are drawn by their lowest and highest points; exports have them all."


def line_chart(
    lines: Sequence[Line], *, view: str, x_title: str, y_title: str, log_y: bool = False
) -> go.Figure:
    """All lines on one pair of axes. `view`: see `template.layout`."""
    longest = max((line.points["step"].max() for line in lines if len(line.points)), default=0)
    every_step: dict[str, Any] = {"dtick": 1} if longest < 12 else {}
    values = [y for line in lines for y in line.points["value"] if y == y]
    flat = bool(values) and min(values) > 0.8 * max(values)  # from 0, nothing of it would be seen
    scale: dict[str, Any] = {} if log_y or flat else {"rangemode": "tozero"}
    looks = layout(
        view=view,
        xaxis=axis(x_title, showgrid=False, **every_step),
        yaxis=axis(y_title, log=log_y, nticks=5, **scale),
        hovermode="x unified",
        **legend_row() | {"showlegend": len(lines) > 1},
    )
    traces = []
    for line in lines:
        x, y = thinned(line.points["step"].to_numpy(), line.points["value"].to_numpy(dtype=float))
        trace = go.Scatter(
            x=x.tolist(),
            y=y.tolist(),
            name=line.label,
            legendgroup=line.label,
            mode="lines+markers" if len(x) <= 60 else "lines",
            marker={"size": 5},
            line=line_look(line.stroke),
            hovertemplate="%{y:.4g}<extra>%{fullData.name}</extra>",
        )
        traces.append(trace)
    return go.Figure(traces, looks)


def curves_frame(lines: Mapping[str, pd.DataFrame], x_title: str) -> pd.DataFrame:
    """The lines drawn as a table: a row a step, a column a line, under its title."""
    columns = {title: points.set_index("step")["value"] for title, points in lines.items()}
    return pd.DataFrame(columns).sort_index().rename_axis(x_title).reset_index()


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: of each stretch the lowest and the highest, in order."""
    if len(x) <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MAX_POINTS // 2 + 1).astype(int)
    stretches = [np.arange(a, b) for a, b in pairwise(edges)]
    kept = np.unique([i for s in stretches for i in (s[y[s].argmin()], s[y[s].argmax()])])
    return x[kept], y[kept]


def dots(
    values: Sequence[float],
    rows: Sequence[object],
    color: str | Sequence[str],
    symbol: str | Sequence[str],
    hover: Sequence[str],
    size: int = 11,  # pixels
    **options: Any,
) -> go.Scatter:
    """One trace of dots, each in its row; `hover` is HTML of Plotly's kind."""
    line = {"width": 2, "color": color}
    return go.Scatter(
        x=[*values],
        y=[*rows],
        mode="markers",
        hovertext=[*hover],
        marker={"size": size, "color": color, "symbol": symbol, "line": line},
        hovertemplate="%{hovertext}<extra></extra>",
        cliponaxis=False,
        **options,
    )


def rows_axis(rows: Sequence[str]) -> dict[str, Any]:
    """The rows from top to bottom. They are categories: "70%" is no number."""
    return category_axis(
        categoryorder="array", categoryarray=[*rows], showgrid=True, nticks=len(rows) + 1
    )


def rows_height(rows: int, around: int, least: int) -> int:
    """Pixels of a figure: `around`, of all but the rows, and theirs; `least` with few rows."""
    return max(least, around + 44 * rows)


def log_span(values: Sequence[float], right: float = 0.1) -> list[float]:
    """log10 of the ends of an axis that shows all values, with room beyond the largest (`right`, in
    parts of the span); empty where there are none."""
    if not values:
        return []
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(high - low, 0.1)
    return [low - 0.1 * room, high + right * room]


def symbol(stroke: LineStyle, shape: str = "circle") -> str:
    """Filled, or an outline where a stage shares its color with another."""
    return shape if stroke.dash == "solid" else f"{shape}-open"


def in_lines(label: str) -> str:
    """A label broken into lines."""
    return "<br>".join(textwrap.wrap(label, 20))
