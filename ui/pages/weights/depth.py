"""Quantiles of one module's weights over the depth of the model."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from backend.statistics.tensors import QUANTILES
from ui.charts.series import ROW
from ui.charts.template import axis, layout, legend, tint
from ui.format import number
from ui.theme import LIGHT, LineStyle

BANDS = tuple(zip(QUANTILES[:4], QUANTILES[:4:-1], strict=True))  # from the widest in
OPACITY = (0.12, 0.18, 0.28, 0.45)
MEDIAN = QUANTILES.index(0.5)
COMPARED = (0.05, 0.95)  # of the dense tensors, drawn as lines
MOST_TICKS = 12


def quantile_bands(
    blocks: Sequence[int],
    quantiles: Sequence[Sequence[float]],
    stroke: LineStyle,
    *,
    tensors: Sequence[str] = (),
    picked: str = "",
    dense: Sequence[Sequence[float]] | None = None,
) -> go.Figure:
    """Bands from block to block, median as a line; the dense tensors' middle 90 % dashed.

    Args:
        quantiles: of each block, as `QUANTILES` names them.
        tensors: their names, told when a block is clicked; the `picked` one is marked.
    """
    columns = list(zip(*quantiles, strict=True))
    lines: list[go.Scatter] = []
    for (low, high), opacity in zip(BANDS, OPACITY, strict=True):
        below, above = columns[QUANTILES.index(low)], columns[QUANTILES.index(high)]
        names = in_percent(low), in_percent(high)
        lines += _band(blocks, below, above, names, tint(stroke.colour, opacity))
    lines.append(_median(blocks, columns[MEDIAN], stroke, tensors))
    if dense:
        lines += _dashed(blocks, list(zip(*dense, strict=True)))
    place = [b for b, name in zip(blocks, tensors, strict=False) if name == picked]
    few = {"dtick": 1} if max(blocks) - min(blocks) < MOST_TICKS else {"nticks": MOST_TICKS}
    return go.Figure(
        lines,
        layout(
            view=f"depth/{tensors[0] if tensors else ''}",
            top=2 * ROW + 8,
            xaxis=axis("Block", showgrid=False, tickformat="d", **few),
            yaxis=axis("Weight"),
            shapes=[_here(block) for block in place],
            hovermode="x unified",
            showlegend=True,
            legend=legend(orientation="h", traceorder="normal"),
        ),
    )


def in_percent(quantile: float) -> str:
    """0.999 as "99.9 %"."""
    return f"{100 * quantile:g} %"


def _band(
    blocks: Sequence[int],
    below: Sequence[float],
    above: Sequence[float],
    names: tuple[str, str],
    fill: str,
) -> list[go.Scatter]:
    low, high = names
    name = f"{low} to {high}"
    common = {"x": list(blocks), "mode": "lines", "line": {"width": 0}, "legendgroup": name}
    return [
        go.Scatter(
            y=list(below),
            name=low,
            meta={"column": low},
            showlegend=False,
            hoverinfo="skip",
            **common,
        ),
        go.Scatter(
            y=list(above),
            name=name,
            meta={"column": high},
            fill="tonexty",
            fillcolor=fill,
            customdata=[
                f"{number(a, 3)} to {number(b, 3)}" for a, b in zip(below, above, strict=True)
            ],
            hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
            **common,
        ),
    ]


def _median(
    blocks: Sequence[int], values: Sequence[float], stroke: LineStyle, tensors: Sequence[str]
) -> go.Scatter:
    return go.Scatter(
        x=list(blocks),
        y=list(values),
        customdata=list(tensors),
        name="Median",
        mode="lines+markers",
        marker={"size": 4},
        line={"color": stroke.colour, "width": 2},
        hovertemplate="Median: %{y:.3g}<extra></extra>",
    )


def _dashed(blocks: Sequence[int], columns: Sequence[Sequence[float]]) -> list[go.Scatter]:
    """The dense tensors, for comparison."""
    name = "Dense, middle 90 %"
    return [
        go.Scatter(
            x=list(blocks),
            y=list(columns[QUANTILES.index(quantile)]),
            mode="lines",
            name=name,
            meta={"column": f"Dense, {in_percent(quantile)}"},
            legendgroup=name,
            showlegend=place == 0,
            line={"color": LIGHT.muted, "width": 1.5, "dash": "dash"},
            hovertemplate=f"Dense, {in_percent(quantile)}: %{{y:.3g}}<extra></extra>",
        )
        for place, quantile in enumerate(COMPARED)
    ]


def _here(block: int) -> dict[str, object]:
    """A line at the chosen block."""
    line = {"color": LIGHT.muted, "width": 1, "dash": "dot"}
    return {
        "type": "line",
        "x0": block,
        "x1": block,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": line,
    }


def depth_note(rows: Sequence[int]) -> str:
    """In words: of how many weights the quantiles are."""
    same = len({*rows}) == 1
    each = f"{rows[0]:,}" if same else f"{min(rows):,} to {max(rows):,}"
    return f"n = {len(rows)} blocks with {each} weights each; exact zeros count too."
