"""Line charts over steps: the curves of one run, or one curve of several runs."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.metric_key import MetricKey
from backend.store.frames import REDUCED
from jobs.metrics import metric
from ui.charts.template import axis, layout, legend_row, line_look
from ui.theme import LineStyle, stage_style

MARKED = 60  # up to so many points each is marked
MAX_POINTS = 2000  # of a line
MAX_LABELLED_STEPS = 12  # up to so many, each has a tick


class Line(NamedTuple):
    """One line; its points have the columns step and value."""

    label: str
    points: pd.DataFrame
    stroke: LineStyle


def y_title(key: MetricKey) -> str:
    described = metric(key)
    return f"{described.title}, mean over {described.over}" if described.over else described.title


def reduced_note(points: pd.DataFrame) -> str:
    """What a chart has to say of curves that were too long to be drawn whole."""
    if not points.attrs.get(REDUCED):
        return ""
    return " Long curves are drawn by their lowest and highest points; exports have them all."


def curves(
    lines: Mapping[MetricKey, pd.DataFrame],
    labels: Mapping[MetricKey, str],
    *,
    x_title: str = "Step",
    y_title: str = "",
    log_y: bool = False,
) -> go.Figure:
    """One line a curve, in the colour of its series or stage."""
    drawn = [
        Line(labels[key], points, stage_style(key.series or key.stage, place))
        for place, (key, points) in enumerate(lines.items())
    ]
    view = "|".join(map(str, lines)) + str(log_y)
    return line_chart(drawn, view=view, x_title=x_title, y_title=y_title, log_y=log_y)


def line_chart(
    lines: Sequence[Line], *, view: str, x_title: str, y_title: str, log_y: bool = False,
    smoothing: float = 0.0,
) -> go.Figure:  # fmt: skip
    """All lines on one pair of axes; smoothed ones keep the raw values as a faint line. `view`: see
    `template.layout`; `smoothing`: weight of the past in the moving average, 0 to 0.99."""
    longest = max((line.points["step"].max() for line in lines if len(line.points)), default=0)
    every_step: dict[str, Any] = {"dtick": 1} if longest < MAX_LABELLED_STEPS else {}
    scale: dict[str, Any] = {} if log_y else {"rangemode": "tozero"}
    looks = layout(
        view=view,
        xaxis=axis(x_title, showgrid=False, **every_step),
        yaxis=axis(y_title, log=log_y, nticks=5, **scale),
        hovermode="x unified",
        **legend_row() | {"showlegend": len(lines) > 1},
    )
    return go.Figure([trace for line in lines for trace in _traces(line, smoothing)], looks)


def curves_frame(lines: Mapping[str, pd.DataFrame], x_title: str) -> pd.DataFrame:
    """The lines drawn as a table: a row a step, a column a line, under its title."""
    columns = {title: points.set_index("step")["value"] for title, points in lines.items()}
    return pd.DataFrame(columns).sort_index().rename_axis(x_title).reset_index()


def _traces(line: Line, smoothing: float) -> list[go.Scatter]:
    """The line; a smoothed one on top of its raw values."""
    step, value = line.points["step"].to_numpy(), line.points["value"].to_numpy(dtype=float)
    if not smoothing:
        return [_trace(line, step, value)]
    raw = _trace(line, step, value).update(
        opacity=0.25, mode="lines", line_width=1, showlegend=False, hoverinfo="skip",
        hovertemplate=None,
    )  # fmt: skip
    return [raw, _trace(line, step, smoothed(value, smoothing))]


def _trace(line: Line, step: np.ndarray, value: np.ndarray) -> go.Scatter:
    x, y = thinned(step, value)
    return go.Scatter(
        x=x.tolist(), y=y.tolist(), name=line.label, legendgroup=line.label, opacity=1.0,
        mode="lines+markers" if len(x) <= MARKED else "lines", marker={"size": 5},
        line=line_look(line.stroke),
        hovertemplate="%{y:.4g}<extra>%{fullData.name}</extra>",
    )  # fmt: skip


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: of each stretch the lowest and the highest, in order."""
    if len(x) <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MAX_POINTS // 2 + 1).astype(int)
    stretches = [np.arange(a, b) for a, b in pairwise(edges)]
    kept = np.unique([i for s in stretches for i in (s[y[s].argmin()], s[y[s].argmax()])])
    return x[kept], y[kept]


def smoothed(y: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average with the bias of its start corrected:

    s_t = w s_{t-1} + (1 - w) y_t,    shown: s_t / (1 - w^t)
    """
    average, state = np.empty_like(y), 0.0
    for t, value in enumerate(y, 1):
        state = weight * state + (1 - weight) * value
        average[t - 1] = state / (1 - weight**t)
    return average
