"""What flows into the layers: input channels over depth, beside the weights that meet them.

inputs    x_j  = sqrt(mean of x_j^2 over the calibration tokens)
weights   w_j  = norm of the weights of input channel j
product   x_j w_j, about what the channel adds to the outputs (Wanda's score, summed up)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ui.charts.chart import Chart
from ui.charts.heatmap import colour_bar
from ui.charts.template import axis, layout, round_ticks
from ui.format import count, number

MEANINGS = {
    "inputs": "Root mean square of the input",
    "weights": "Norm of the channel's weights",
    "product": "Input × norm of its weights",
}
CELLS = 128  # across; a cell shows its largest channel
RANGE = 1e-3  # of the largest: smaller figures have the darkest colour


@dataclass(frozen=True)
class BlockChannels:
    """One figure of all input channels [in] of a module in a block."""

    tensor: str
    block: int
    values: np.ndarray


def activations_chart(rows: Sequence[BlockChannels], flow: str) -> Chart:
    """`channel_map` with its figures as a table, a note and a headline."""
    values = np.stack([row.values for row in rows])
    medians = np.median(values, axis=1, keepdims=True)
    times = values / np.where(medians > 0, medians, np.inf)
    block, channel = divmod(int(times.argmax()), times.shape[1])
    headline = (
        f"Channel {channel} stands out in block {rows[block].block}: "
        f"{number(float(times[block, channel]), 3)} × the median of its block"
    )
    note = f"n = {len(rows)} blocks × {count(values.shape[1])} input channels."
    if values.shape[1] > CELLS:
        note += f" A cell shows the largest of about {values.shape[1] / CELLS:.0f} channels."
    columns = ["Block", *(f"Channel {n}" for n in range(values.shape[1]))]
    frame = pd.DataFrame([[row.block, *row.values.tolist()] for row in rows], columns=columns)
    return Chart(channel_map(rows, flow), frame, note, headline=headline)


def channel_map(rows: Sequence[BlockChannels], flow: str) -> go.Figure:
    """Blocks from top to bottom, channels from left to right, colours on a log scale."""
    values = np.stack([row.values for row in rows])
    parts = np.array_split(np.arange(values.shape[1]), min(CELLS, values.shape[1]))
    largest = np.stack([values[:, part].max(1) for part in parts], 1)
    names = [[int(part[v[part].argmax()]) for part in parts] for v in values]
    high = float(largest.max()) or 1.0
    low = max(float(largest[largest > 0].min(initial=high)), RANGE * high)
    logs = np.log10(np.maximum(largest, low)).round(3)
    ticks = round_ticks(low, high) if high > 1.01 * low else [high]
    bar = {"tickvals": np.log10(ticks).tolist(), "ticktext": [f"{t:,.4g}" for t in ticks]}
    heat = go.Heatmap(
        x=[int(part[len(part) // 2]) for part in parts], y=[row.block for row in rows],
        z=logs.tolist(), customdata=[[row.tensor] * len(parts) for row in rows],
        text=[
            [f"channel {n}: {v:.4g}" for n, v in zip(ns, vs, strict=True)]
            for ns, vs in zip(names, largest, strict=True)
        ],
        hovertemplate="Block %{y}, %{text}<extra></extra>", colorscale="cividis",
        colorbar=colour_bar(f"{MEANINGS[flow]} (log scale)") | bar,
    )  # fmt: skip
    looks = layout(
        view=f"inputs/{flow}",
        xaxis=axis("Input channel", showgrid=False),
        yaxis=axis("Block", showgrid=False, autorange="reversed", tickformat="d"),
    )
    return go.Figure(heat, looks | {"margin": {"t": 48}})
