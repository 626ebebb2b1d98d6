"""Line charts of the curves of one run, or of one curve of several runs; and dot plots with a row
for each stage or setting."""

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

MAX_POINTS = 2000  # points per line


class Line(NamedTuple):
    """One line of a chart; `points` has the columns step and value."""

    label: str
    points: pd.DataFrame
    stroke: LineStyle


def points_label(key: MetricKey, several: bool = False) -> str:
    """Description of a curve's points, to follow their number: "points, each the mean over …"."""
    over = metric(key).over
    points = "points per line" if several else "points"
    return f"{points}, each the mean over {over}" if over else points


def reduced_note(points: pd.DataFrame) -> str:
    """Note of a chart whose curves were too long to be drawn completely; else empty."""
    if not points.attrs.get(REDUCED):
        return ""
    return " Long curves show their lowest and highest points only; exports have all points."


def line_chart(lines: Sequence[Line], *, view: str, x_title: str, y_title: str) -> go.Figure:
    """A line chart; `view` as in `ui.charts.chart.layout`."""
    last_step = max((line.points["step"].max() for line in lines if len(line.points)), default=0)
    x_ticks: dict[str, Any] = {"dtick": 1} if last_step < 12 else {}
    values = [y for line in lines for y in line.points["value"] if y == y]
    is_flat = bool(values) and min(values) > 0.8 * max(values)  # an axis from 0 would hide changes
    y_range: dict[str, Any] = {} if is_flat else {"rangemode": "tozero"}
    chart_layout = layout(
        view=view,
        xaxis=axis(x_title, showgrid=False, **x_ticks),
        yaxis=axis(y_title, nticks=5, **y_range),
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
    return go.Figure(traces, chart_layout)


def curves_frame(lines: Mapping[str, pd.DataFrame], x_title: str) -> pd.DataFrame:
    """The lines as a table with a row per step and a column per line."""
    columns = {title: points.set_index("step")["value"] for title, points in lines.items()}
    return pd.DataFrame(columns).sort_index().rename_axis(x_title).reset_index()


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points of a line: the lowest and the highest of each interval."""
    if len(x) <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MAX_POINTS // 2 + 1).astype(int)
    intervals = [np.arange(start, end) for start, end in pairwise(edges)]
    indexes = np.unique([i for s in intervals for i in (s[y[s].argmin()], s[y[s].argmax()])])
    return x[indexes], y[indexes]


def dots(
    values: Sequence[float],
    rows: Sequence[object],
    color: str | Sequence[str],
    symbol: str | Sequence[str],
    hover: Sequence[str],
    size: int = 11,  # pixels
    **options: Any,
) -> go.Scatter:
    """A trace of dots, each in its row; `hover` is Plotly's subset of HTML."""
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
    """A vertical axis of rows from top to bottom; categories, so that "70%" stays a label."""
    return category_axis(
        categoryorder="array", categoryarray=[*rows], showgrid=True, nticks=len(rows) + 1
    )


def rows_height(rows: int, around: int, least: int) -> int:
    """Height of a figure with rows in pixels: at least `least`; `around` is all but the rows."""
    return max(least, around + 44 * rows)


def log_span(values: Sequence[float], right: float = 0.1) -> list[float]:
    """The ends of a log axis that shows all values, as log10; empty without values.

    Args:
        right: margin beyond the largest value, as a share of the range.
    """
    if not values:
        return []
    low, high = math.log10(min(values)), math.log10(max(values))
    extent = max(high - low, 0.1)
    return [low - 0.1 * extent, high + right * extent]


def symbol(stroke: LineStyle, shape: str = "circle") -> str:
    """A filled symbol, or an outline for a stage that shares its color with another one."""
    return shape if stroke.dash == "solid" else f"{shape}-open"


def in_lines(label: str) -> str:
    """A label with line breaks after at most 20 characters."""
    return "<br>".join(textwrap.wrap(label, 20))
