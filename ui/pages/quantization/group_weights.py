"""One group weight by weight: dense values, and how far the grid moved them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ui.charts.template import axis, layout, reference_line, tint
from ui.format import count
from ui.theme import LIGHT, stage_style


@dataclass(frozen=True)
class GroupWeights:
    """One group, weight by weight.

    Attributes:
        dense, quantized: the weights before and on the grid.
        points: of the grid, ascending.
    """

    dense: np.ndarray
    quantized: np.ndarray
    points: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        return self.quantized - self.dense

    @property
    def half(self) -> float:
        """Half a step of the grid: how far plain rounding moves a weight at most."""
        return float(self.points[1] - self.points[0]) / 2

    @property
    def beyond(self) -> int:
        """Dense weights outside of the grid by more than half a step."""
        low, high = self.points[0] - self.half, self.points[-1] + self.half
        return int(((self.dense < low) | (self.dense > high)).sum())

    @property
    def elsewhere(self) -> int:
        """Weights that are not at the point of the grid nearest to their dense value."""
        nearest = self.points[np.abs(self.dense[:, None] - self.points).argmin(axis=1)]
        return int((np.abs(self.quantized - nearest) > self.half).sum())


def group_weights(group: GroupWeights, view: str, stage: str) -> go.Figure:
    """Dense weights against how far the grid moved them; a line for each point of the grid, a band
    for what plain rounding would have done."""
    dots = go.Scatter(
        x=group.dense.tolist(), y=group.residual.tolist(), customdata=group.quantized.tolist(),
        mode="markers", marker={"size": 7, "color": stage_style(stage).colour},
        hovertemplate="Dense %{x:.5f}<br>now %{customdata:.5f}<br>moved by %{y:.5f}<extra></extra>",
    )  # fmt: skip
    points = group.points.tolist()
    lines = [reference_line(x=point, dash="dot", layer="below") for point in points]
    band: dict[str, object] = {
        "type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -group.half, "y1": group.half,
        "layer": "below", "fillcolor": tint(LIGHT.muted, 0.12), "line": {"width": 0},
    }  # fmt: skip
    ends = np.concatenate([group.points, group.dense])
    reach = [float(ends.min() - group.half), float(ends.max() + group.half)]
    across = axis("Dense weight (dotted: the grid)", showgrid=False, nticks=6, range=reach)
    down = axis("Moved by", nticks=5)
    return go.Figure(dots, layout(view=view, shapes=[band, *lines], xaxis=across, yaxis=down))


def group_weights_note(group: GroupWeights) -> str:
    """In words: how many weights, and how many plain rounding would not have put where they are."""
    words = f"n = {count(len(group.dense))} weights on {len(np.unique(group.quantized))} of "
    words += f"{len(group.points)} points; {group.beyond} of the dense ones beyond the ends, "
    return f"{words}{group.elsewhere} not at the nearest point."
