"""One group weight by weight: dense values, and how far the grid moved them."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ui.charts.template import axis, layout, reference_line, tint
from ui.format import count
from ui.theme import LIGHT, stage_style


@dataclass(frozen=True)
class GroupWeights:
    """One group, weight by weight: before and on the grid, whose points ascend."""

    dense: np.ndarray
    quantized: np.ndarray
    points: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        return self.quantized - self.dense

    @property
    def half(self) -> float:
        """Half a step of the grid, the largest error of rounding to nearest."""
        return float(self.points[1] - self.points[0]) / 2

    @property
    def beyond(self) -> int:
        """Number of dense weights more than half a step outside of the grid."""
        low, high = self.points[0] - self.half, self.points[-1] + self.half
        return int(((self.dense < low) | (self.dense > high)).sum())

    @property
    def elsewhere(self) -> int:
        """Number of weights that are not at the grid point nearest to their dense value."""
        nearest = self.points[np.abs(self.dense[:, None] - self.points).argmin(axis=1)]
        return int((np.abs(self.quantized - nearest) > self.half).sum())


def group_weights(group: GroupWeights, view: str, stage: str) -> go.Figure:
    """Change of each weight over its dense value; a band for rounding to nearest."""
    dots = go.Scatter(
        x=group.dense.tolist(),
        y=group.residual.tolist(),
        customdata=group.quantized.tolist(),
        mode="markers",
        marker={"size": 7, "color": stage_style(stage).colour},
        hovertemplate="Dense %{x:.5f}<br>now %{customdata:.5f}<br>moved by %{y:.5f}<extra></extra>",
    )
    points = group.points.tolist()
    lines = [reference_line(x=point, dash="dot", layer="below") for point in points]
    band: dict[str, object] = {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": -group.half,
        "y1": group.half,
        "layer": "below",
        "fillcolor": tint(LIGHT.muted, 0.12),
        "line": {"width": 0},
    }
    ends = np.concatenate([group.points, group.dense])
    reach = [float(ends.min() - group.half), float(ends.max() + group.half)]
    across = axis("Dense weight (dotted: the grid)", showgrid=False, nticks=6, range=reach)
    down = axis("Moved by", nticks=5)
    return go.Figure(dots, layout(view=view, shapes=[band, *lines], xaxis=across, yaxis=down))


def group_weights_note(group: GroupWeights) -> str:
    words = f"n = {count(len(group.dense))} weights on {len(np.unique(group.quantized))} of "
    words += f"{len(group.points)} points; {group.beyond} of the dense ones beyond the ends, "
    return f"{words}{group.elsewhere} not at the nearest point."
