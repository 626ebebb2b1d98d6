"""Where weights went: every weight by its dense value and by its value at one stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ui.charts.chart import Chart
from ui.charts.headlines import of_change
from ui.charts.heatmap import colour_bar
from ui.charts.series import Series
from ui.charts.template import axis, layout
from ui.format import count, share
from ui.theme import LIGHT

DECADES = (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class JointCounts:
    """Numbers of weights [dense bins, bins after], over the axis of the histogram of `after`."""

    counts: np.ndarray
    after: Series

    @property
    def edges(self) -> np.ndarray:
        snapshot = self.after.snapshot
        return np.linspace(snapshot.lo, snapshot.hi, len(self.counts) + 1)


def joint_chart(drawn: Sequence[JointCounts], before: str) -> Chart:
    """`joint_figure` with its figures as a table, a note and a headline.

    Args:
        drawn: one of each run.
        before: label of the dense stage.
    """
    first, bins = drawn[0], len(drawn[0].counts)
    headline = _change(first) if len(drawn) == 1 else _changes(drawn)
    note = (
        f"n = {count(int(first.counts.sum()))} weights in {bins} × {bins} bins; those "
        "beyond the axes count at their ends. On the dashed line a weight is what it was."
    )
    return Chart(joint_figure(drawn, before), joint_frame(drawn, before), note, headline=headline)


def _change(one: JointCounts) -> str:
    snapshot = one.after.snapshot
    moved = snapshot.stats.get("moved")
    return of_change(one.after.label, moved, snapshot.zeros / snapshot.n)


def _changes(drawn: Sequence[JointCounts]) -> str:
    """Of several runs, how far each moved the weights; their labels end with the run."""
    moved = [
        f"{share(one.after.snapshot.stats['moved'])} in {one.after.label.rsplit(', ', 1)[-1]}"
        for one in drawn
        if "moved" in one.after.snapshot.stats
    ]
    return f"The weights move by {', '.join(moved)}, of their norm" if moved else ""


def joint_figure(drawn: Sequence[JointCounts], before: str) -> go.Figure:
    """A panel for each, on the same colours and axes: counts on a log scale; bins without weights
    stay empty."""
    most = max(one.counts.max() for one in drawn)
    ticks = [n for n in DECADES if n <= most]
    decades = {"tickvals": [np.log10(n) for n in ticks], "ticktext": [f"{n:,}" for n in ticks]}
    figure = make_subplots(
        1, len(drawn), shared_xaxes="all", shared_yaxes="all", horizontal_spacing=0.04
    )
    low, high = float(drawn[0].edges[0]), float(drawn[0].edges[-1])
    for column, one in enumerate(drawn, 1):
        figure.add_trace(_heat(one, before), 1, column)
        figure.add_shape(
            type="line", x0=low, y0=low, x1=high, y1=high, row=1, col=column,
            line={"color": LIGHT.muted, "width": 1, "dash": "dash"},
        )  # fmt: skip
        title = axis(f"Weight, {before.lower()}", showgrid=False, range=[low, high])
        figure.update_xaxes(title, row=1, col=column)
        if len(drawn) > 1:
            left = next(figure.select_xaxes(row=1, col=column)).domain[0]
            figure.add_annotation(
                text=one.after.label, x=left, y=1, xref="paper", yref="paper", yanchor="bottom",
                font={"color": LIGHT.text},
            )  # fmt: skip
    after = drawn[0].after.label if len(drawn) == 1 else "after"
    figure.update_yaxes(showgrid=False, range=[low, high])
    figure.update_yaxes(axis(f"Weight, {after}"), col=1)
    bar = colour_bar("Weights (log scale)") | decades
    if len(drawn) > 1:
        bar |= {"y": 1.1}  # above the titles of the panels
    colours = {"cmin": 0, "colorscale": "cividis", "colorbar": bar}
    looks = layout(view=f"joint/{after}", coloraxis=colours, meta={"linked": True})
    return figure.update_layout(looks | {"margin": {"t": 48 if len(drawn) == 1 else 72}})


def _heat(one: JointCounts, before: str) -> go.Heatmap:
    edges, after = one.edges, one.after.label
    centres = ((edges[:-1] + edges[1:]) / 2).round(6).tolist()
    return go.Heatmap(
        x=centres, y=centres, coloraxis="coloraxis",
        z=[[round(float(np.log10(n)), 3) if n else None for n in row] for row in one.counts.T],
        text=[[f"{int(n):,}" for n in row] for row in one.counts.T],
        hovertemplate=f"{before} %{{x:.3g}}, {after} %{{y:.3g}}: %{{text}} weights<extra></extra>",
    )  # fmt: skip


def joint_frame(drawn: Sequence[JointCounts], before: str) -> pd.DataFrame:
    """Every bin that is not empty, a row each."""
    frames = []
    for one in drawn:
        rows, columns = np.nonzero(one.counts)
        frames.append(
            pd.DataFrame({
                f"{before} from": one.edges[rows], f"{one.after.label} from": one.edges[columns],
                "Weights": one.counts[rows, columns].astype(int),
            })
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)
