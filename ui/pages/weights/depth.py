"""Quantiles of one module's weights over the depth of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from backend.statistics.tensors import QUANTILES
from jobs.wording import extent
from ui.charts.template import axis, layout, legend_row, reference_line, tint
from ui.format import number
from ui.theme import LIGHT, LineStyle

BANDS = tuple(zip(QUANTILES[:4], QUANTILES[:4:-1], strict=True))  # from the widest in
OPACITY = (0.12, 0.18, 0.28, 0.45)
COMPARED = (0.05, 0.95)  # of what the bands are compared with, drawn as lines
MAX_DEPTH_TICKS = 12


def middle(quantiles: Sequence[float]) -> float:
    """How wide the middle 90 % is, of quantiles as `QUANTILES` names them."""
    low, high = (QUANTILES.index(q) for q in COMPARED)
    return quantiles[high] - quantiles[low]


def quantile_bands(
    blocks: Sequence[int],
    quantiles: Sequence[Sequence[float]],
    stroke: LineStyle,
    *,
    tensors: Sequence[str] = (),
    picked: str = "",
    compared: Sequence[Sequence[float]] | None = None,
    other: str = "Dense",
) -> go.Figure:
    """Bands from block to block, median as a line; the middle 90 % of what they are compared with
    dashed.

    Args:
        quantiles: of each block, as `QUANTILES` names them.
        compared, other: the quantiles of the dense tensors or of another run, and their name.
        tensors: their names, given by the point that is clicked; the `picked` one is marked.
    """
    figure = go.Figure()
    for (low, high), opacity in zip(BANDS, OPACITY, strict=True):
        figure.add_traces(_band(blocks, quantiles, low, high, tint(stroke.colour, opacity)))
    figure.add_scatter(
        x=[*blocks], y=_column(quantiles, 0.5), customdata=[*tensors], name="Median",
        mode="lines+markers", marker={"size": 4}, line={"color": stroke.colour},
        hovertemplate="Median: %{y:.3g}<extra></extra>",
    )  # fmt: skip
    if compared:
        figure.add_traces([_dashed(blocks, compared, q, other) for q in COMPARED])
    shallow = max(blocks) - min(blocks) < MAX_DEPTH_TICKS
    few: dict[str, Any] = {"dtick": 1} if shallow else {"nticks": MAX_DEPTH_TICKS}
    marked = [b for b, tensor in zip(blocks, tensors, strict=False) if tensor == picked]
    looks = layout(
        view=f"depth/{tensors[0] if tensors else ''}",
        xaxis=axis("Block", showgrid=False, tickformat="d", **few),
        yaxis=axis("Weight"),
        hovermode="x unified",
        shapes=[reference_line(x=block, dash="dot") for block in marked],
        **legend_row(top=48, traceorder="normal"),
    )
    return figure.update_layout(looks)


def in_percent(quantile: float) -> str:
    """0.999 as "99.9 %"."""
    return f"{100 * quantile:g} %"


def _column(quantiles: Sequence[Sequence[float]], quantile: float) -> list[float]:
    """One quantile of every block."""
    return [values[QUANTILES.index(quantile)] for values in quantiles]


def _band(
    blocks: Sequence[int], quantiles: Sequence[Sequence[float]], low: float, high: float, fill: str
) -> list[go.Scatter]:
    below, above = _column(quantiles, low), _column(quantiles, high)
    name = f"{in_percent(low)} to {in_percent(high)}"
    ends = [f"{number(a, 3)} to {number(b, 3)}" for a, b in zip(below, above, strict=True)]
    common = {"x": [*blocks], "mode": "lines", "line": {"width": 0}, "legendgroup": name}
    return [
        go.Scatter(y=below, showlegend=False, hoverinfo="skip", **common),
        go.Scatter(
            y=above, name=name, fill="tonexty", fillcolor=fill, customdata=ends,
            hovertemplate=f"{name}: %{{customdata}}<extra></extra>", **common,
        ),
    ]  # fmt: skip


def _dashed(
    blocks: Sequence[int], quantiles: Sequence[Sequence[float]], quantile: float, other: str
) -> go.Scatter:
    """Other tensors, for comparison."""
    name = f"{other}, middle 90 %"
    return go.Scatter(
        x=[*blocks], y=_column(quantiles, quantile), mode="lines", name=name, legendgroup=name,
        showlegend=quantile == COMPARED[0],
        line={"color": LIGHT.muted, "width": 1.5, "dash": "dash"},
        hovertemplate=f"{other}, {in_percent(quantile)}: %{{y:.3g}}<extra></extra>",
    )  # fmt: skip


def depth_note(rows: Sequence[int]) -> str:
    """In words: of how many weights the quantiles are."""
    each = extent(rows, "{:,}".format)
    return f"n = {len(rows)} blocks with {each} weights each; exact zeros count too."
