"""Where weights went: every weight by its dense value and by its value at one stage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ui.charts.chart import Chart
from ui.charts.headlines import of_change
from ui.charts.heatmap import colour_bar
from ui.charts.series import Series
from ui.charts.template import axis, layout
from ui.format import count
from ui.theme import LIGHT

DECADES = (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)


def joint_chart(counts: np.ndarray, before: str, after: Series) -> Chart:
    """`joint_figure` with its figures as a table, a note and a headline.

    Args:
        counts: [dense bins, bins after], over the axis of the histogram of `after`.
        before: label of the dense stage.
    """
    snapshot = after.snapshot
    edges = np.linspace(snapshot.lo, snapshot.hi, len(counts) + 1)
    headline = of_change(after.label, snapshot.stats.get("moved"), snapshot.zeros / snapshot.n)
    note = (
        f"n = {count(int(counts.sum()))} weights in {len(counts)} × {len(counts)} bins; those "
        "beyond the axes count at their ends. On the dashed line a weight is what it was."
    )
    frame = joint_frame(counts, edges, before, after.label)
    return Chart(joint_figure(counts, edges, before, after.label), frame, note, headline=headline)


def joint_figure(counts: np.ndarray, edges: np.ndarray, before: str, after: str) -> go.Figure:
    """Colours are counts on a log scale; bins without weights stay empty."""
    centres = ((edges[:-1] + edges[1:]) / 2).round(6).tolist()
    logs = [[round(float(np.log10(n)), 3) if n else None for n in row] for row in counts.T]
    numbers = [[f"{int(n):,}" for n in row] for row in counts.T]
    ticks = [n for n in DECADES if n <= counts.max()]
    hover = f"{before} %{{x:.3g}}, {after} %{{y:.3g}}: %{{text}} weights<extra></extra>"
    decades = {"tickvals": [np.log10(n) for n in ticks], "ticktext": [f"{n:,}" for n in ticks]}
    heat = go.Heatmap(
        x=centres, y=centres, z=logs, text=numbers, zmin=0,
        colorscale="cividis", colorbar=colour_bar("Weights (log scale)") | decades,
        hovertemplate=hover,
    )  # fmt: skip
    low, high = float(edges[0]), float(edges[-1])
    unchanged = {
        "type": "line", "x0": low, "y0": low, "x1": high, "y1": high,
        "line": {"color": LIGHT.muted, "width": 1, "dash": "dash"},
    }  # fmt: skip
    looks = layout(
        view=f"joint/{after}",
        shapes=[unchanged],
        xaxis=axis(f"Weight, {before.lower()}", showgrid=False, range=[low, high]),
        yaxis=axis(f"Weight, {after}", showgrid=False, range=[low, high]),
        margin={"t": 48},
    )
    return go.Figure(heat).update_layout(looks)


def joint_frame(counts: np.ndarray, edges: np.ndarray, before: str, after: str) -> pd.DataFrame:
    """Every bin that is not empty, a row each."""
    rows, columns = np.nonzero(counts)
    return pd.DataFrame({
        f"{before} from": edges[rows], f"{after} from": edges[columns],
        "Weights": counts[rows, columns].astype(int),
    })  # fmt: skip
