"""A sweep: one line a combination, one dot a stage, the spread over seeds as a bar through it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from jobs.metrics import Metric
from jobs.sweep import SweepRow
from ui.charts.stages import symbol
from ui.charts.template import axis, layout, legend, log_axis
from ui.format import esc, number
from ui.theme import stage_style

WIDE = 24
DENSE = "dense"
LOG_FROM = 4.0  # largest over smallest from which a log axis is worth it


def sweep_means(rows: Sequence[SweepRow], of: Metric, labels: Mapping[str, str]) -> go.Figure:
    """Mean of one metric by combination and stage.

    Args:
        rows: of this metric alone, as `jobs.sweep.table` gives them.
        labels: stage -> label.
    """
    scale = 100.0 if of.form == "share" else 1.0
    names = {text: _label(row) for row in rows if (text := repr(row.values))}
    stages = dict.fromkeys(row.stage for row in rows)
    lines = [
        _dots([r for r in rows if r.stage == stage], names, scale, labels.get(stage, stage))
        for stage in stages
    ]
    return go.Figure(
        lines,
        layout(
            view=of.name,
            top=56,
            xaxis=_x_axis(of, [scale * row.mean for row in rows]),
            yaxis=axis(
                type="category",  # "70%" is no number
                categoryorder="array",
                categoryarray=[*names.values()][::-1],
                showgrid=True,
                nticks=len(names) + 1,
            ),
            showlegend=True,
            legend=legend(orientation="h"),
        ),
    )


def _label(row: SweepRow) -> str:
    return "<br>".join(map(esc, textwrap.wrap(row.label, WIDE)))


def _x_axis(of: Metric, values: Sequence[float]) -> dict[str, object]:
    """A log axis where the values lie far apart."""
    low, high = min(values), max(values)
    if low <= 0 or high / low < LOG_FROM:
        return axis(of.title, showgrid=False)
    room = 0.06 * math.log10(high / low)
    span = [math.log10(low) - room, math.log10(high) + room]
    return log_axis(of.title, span, showgrid=False, tickangle=0)


def _dots(
    rows: Sequence[SweepRow], names: Mapping[str, str], scale: float, label: str
) -> go.Scatter:
    stroke = stage_style(rows[0].stage)
    dense = rows[0].stage == DENSE  # a tick, so that a stage as good as dense does not hide it
    spreads = [scale * (row.spread or 0.0) for row in rows]
    return go.Scatter(
        x=[scale * row.mean for row in rows],
        y=[names[repr(row.values)] for row in rows],
        name=label,
        mode="markers",
        marker={
            "size": 22 if dense else 10, "color": stroke.colour,
            "symbol": "line-ns" if dense else symbol(stroke),
            "line": {"width": 2, "color": stroke.colour},
        },
        error_x={"type": "data", "array": spreads, "color": stroke.colour, "width": 4},
        hovertext=[_hover(row, label, scale) for row in rows],
        hovertemplate="%{hovertext}<extra></extra>",
        cliponaxis=False,
    )  # fmt: skip


def _hover(row: SweepRow, label: str, scale: float) -> str:
    spread = "" if row.spread is None else f" ± {number(scale * row.spread, 2)}"
    value = f"{label}: {number(scale * row.mean)}{spread}"
    return f"<b>{esc(row.label)}</b><br>{value}<br>n = {row.n} runs"
