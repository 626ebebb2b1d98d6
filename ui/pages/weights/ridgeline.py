"""Distributions of one module in every block, one behind the other: a ridgeline over depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.statistics.tensors import TensorSnapshot
from ui.charts.series import bin_edges
from ui.charts.template import axis, layout, tint
from ui.theme import LineStyle

BINS = 64
OVERLAP = 2.5  # blocks that the highest ridge reaches over
MIN_ZERO_SHARE = 5e-4  # share of exact zeros that is told
AXIS_COVERAGE = 0.999  # of the weights that are not zero lie on the axis


def ridgeline(
    snapshots: Sequence[TensorSnapshot], stroke: LineStyle, picked: str = ""
) -> go.Figure:
    """The first block on top, each on the same axis and scale; exact zeros are in no ridge.

    Args:
        snapshots: of one module at one stage, block by block.
        picked: the tensor whose ridge is outlined.
    """
    reach = _reach(snapshots)
    edges = np.linspace(-reach, reach, BINS + 1)
    centres = ((edges[:-1] + edges[1:]) / 2).round(5).tolist()
    heights = np.array([_heights(s, edges) for s in snapshots])
    scaled = OVERLAP * heights / (heights.max() or 1.0)
    figure = go.Figure()
    for place, (snapshot, ridge, shares) in enumerate(zip(snapshots, scaled, heights, strict=True)):
        figure.add_traces(_ridge(centres, -float(snapshot.block), ridge, shares, snapshot, stroke))
        figure.data[-1].line.width = 2.5 if snapshot.tensor == picked else 1
        if place == 0:
            top = float(ridge.max())
    blocks = [s.block for s in snapshots]
    ticks = blocks[:: max(1, len(blocks) // 10)]
    looks = layout(
        view=f"ridges/{snapshots[0].module}",
        xaxis=axis("Weight", showgrid=False, range=[-reach, reach]),
        yaxis=axis(
            "Block", showgrid=False, tickvals=[-b for b in ticks], ticktext=[str(b) for b in ticks],
            range=[-max(blocks) - 0.3, -min(blocks) + top + 0.2],
        ),
        hovermode="closest",
    )  # fmt: skip
    return figure.update_layout(looks)


def ridges_frame(snapshots: Sequence[TensorSnapshot]) -> pd.DataFrame:
    """The histograms as a table, a row a block."""
    rows = [[s.block, s.lo, s.hi, s.zeros, *s.counts] for s in snapshots]
    bins = [f"Bin {n}" for n in range(len(snapshots[0].counts))]
    return pd.DataFrame(rows, columns=["Block", "From", "To", "Exact zeros", *bins])


def ridges_note(snapshots: Sequence[TensorSnapshot]) -> str:
    """In words: what is drawn, and what is not."""
    zeros = sum(s.zeros for s in snapshots) / sum(s.n for s in snapshots)
    left_out = f" {100 * zeros:.1f} % exact zeros are left out." if zeros >= MIN_ZERO_SHARE else ""
    return f"n = {len(snapshots)} blocks, the same axis and scale, {BINS} bins.{left_out}"


def _ridge(
    centres: list[float],
    base: float,
    ridge: np.ndarray,
    shares: np.ndarray,
    snapshot: TensorSnapshot,
    stroke: LineStyle,
) -> list[go.Scatter]:
    """The ground, and the ridge filled down to it."""
    common: dict[str, Any] = {"x": centres, "mode": "lines", "showlegend": False}
    ground = go.Scatter(y=[base] * BINS, line={"width": 0}, hoverinfo="skip", **common)
    return [
        ground,
        go.Scatter(
            y=(base + ridge).round(3).tolist(), fill="tonexty", fillcolor=tint(stroke.colour, 0.35),
            line={"color": stroke.colour, "width": 1}, customdata=[snapshot.tensor] * BINS,
            text=[f"{share:.2f} %" for share in shares], name=f"Block {snapshot.block}",
            hovertemplate=f"Block {snapshot.block}, %{{x:.3g}}: %{{text}} of the weights"
            "<extra></extra>", **common,
        ),
    ]  # fmt: skip


def _reach(snapshots: Sequence[TensorSnapshot]) -> float:
    """Half the width of the axis: it holds nearly all weights of nearly all blocks."""
    ends = []
    for s in snapshots:
        distance = np.abs(bin_edges(s)[:-1] + bin_edges(s)[1:]) / 2
        order = distance.argsort()
        upto = s.counts[order].cumsum() / max(s.counts.sum(), 1)
        ends.append(
            float(distance[order][min(np.searchsorted(upto, AXIS_COVERAGE), len(order) - 1)])
        )
    return max(ends) or 1.0


def _heights(snapshot: TensorSnapshot, edges: np.ndarray) -> np.ndarray:
    """Share of all weights in each bin, %; weights are taken to lie evenly in their own bins."""
    upto = np.interp(edges, bin_edges(snapshot), np.concatenate([[0], snapshot.counts.cumsum()]))
    return np.diff(upto) / snapshot.n * 100
