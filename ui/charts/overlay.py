"""The weights of one tensor at up to four stages, laid over each other.

All stages share their bins; few weights are put into fewer, wider bins. Exact zeros are no bar,
they are counted in words. The height of a bin is its share of *all* weights of the tensor, so what
pruning took from the middle is missing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go

from backend.statistics.tensors import TensorSnapshot
from ui.charts.layout import axis, layout, legend
from ui.format import count, number, share
from ui.theme import stage_stroke

MOST = 4
ROW = 20  # pixels of one legend row
WIDTHS = (3.5, 3.0, 2.25, 1.5)  # a line that hides another leaves its rim to be seen
FULL = 100  # weights a bin should hold on average
FEWEST = 64


def stage_overlay(
    snapshots: Sequence[TensorSnapshot],
    stages: Sequence[str],
    *,
    names: Mapping[str, str],
    log_y: bool = False,
) -> go.Figure:
    """Histograms of one tensor.

    Args:
        snapshots: of one tensor, as `queries.tensor_snapshots` returns them.
        stages: the ones to draw, at most `MOST`; those without a snapshot are left out.
        names: stage -> label.
    """
    by_stage = {s.stage: s for s in snapshots}
    drawn = [by_stage[stage] for stage in stages if stage in by_stage][:MOST]
    tensor = drawn[0].tensor if drawn else ""
    view = f"{tensor}/{'log' if log_y else 'linear'}"
    height = axis("Share of all weights per bin, %" + (" (log axis)" if log_y else ""), nticks=6)
    height |= {"type": "log", "tickformat": "~g", "dtick": 1} if log_y else {"rangemode": "tozero"}
    reach = None if log_y else _range(drawn)
    return go.Figure(
        [_outline(s, names, log_y, WIDTHS[place]) for place, s in enumerate(drawn)],
        layout(
            view=tensor,
            top=ROW * len(drawn) + 8,
            xaxis=axis("Weight", showgrid=False, uirevision=view, range=reach),
            yaxis=height | {"uirevision": view},
            hovermode="x unified",
            showlegend=True,
            legend=legend(),
        ),
    )


def legible(snapshot: TensorSnapshot) -> TensorSnapshot:
    """The same histogram in fewer bins, as long as a bin holds too few weights to have a shape."""
    counts = snapshot.counts
    while len(counts) > FEWEST and snapshot.n < FULL * len(counts):
        counts = counts.reshape(-1, 2).sum(axis=1)
    return replace(snapshot, counts=counts)


def overlay_count(drawn: Sequence[TensorSnapshot], names: Mapping[str, str], log_y: bool) -> str:
    """In words: how many weights there are, how many lie beyond the bins, what the axis shows."""
    if not drawn:
        return ""
    first = drawn[0]
    shown = "" if log_y else ", middle 99.8 % shown"
    words = [f"n = {count(first.n)} weights, {len(first.counts)} bins{shown}."]
    if any(s.below or s.above for s in drawn):
        beyond = [f"{names.get(s.stage, s.stage)} {s.below:,} and {s.above:,}" for s in drawn]
        edges = f"Below {number(first.lo, 3)} and above {number(first.hi, 3)}"
        words.append(f"{edges}: {', '.join(beyond)}.")
    return " ".join(words)


def _outline(
    snapshot: TensorSnapshot, names: Mapping[str, str], log_y: bool, width: float
) -> go.Scatter:
    """A step line; the dense tensor's is filled, the shape all others are seen against."""
    stroke = stage_stroke(snapshot.stage)
    label = names.get(snapshot.stage, snapshot.stage)
    edges = np.linspace(snapshot.lo, snapshot.hi, len(snapshot.counts) + 1)
    heights = 100 * snapshot.counts / snapshot.n
    silhouette = snapshot.stage == "dense"
    return go.Scatter(
        x=((edges[:-1] + edges[1:]) / 2).tolist(),
        y=[None if log_y and h == 0 else float(h) for h in heights],
        customdata=snapshot.counts.tolist(),
        mode="lines",
        line={
            "shape": "hvh",
            "color": stroke.colour,
            "dash": stroke.dash,
            "width": 1 if silhouette else width,
        },
        fill="tozeroy" if silhouette and not log_y else None,
        fillcolor="rgba(91,100,114,0.25)",
        name=f"{label} · {zeros_in_words(snapshot)}",
        hovertemplate=f"{label} %{{y:.3f}} %, n = %{{customdata:,}}<extra></extra>",
    )


def zeros_in_words(snapshot: TensorSnapshot) -> str:
    """The exact zeros, which no bar shows."""
    if snapshot.zeros < snapshot.n / 1000:
        return f"{count(snapshot.zeros) if snapshot.zeros else 'no'} exact zeros"
    return f"{share(snapshot.zeros / snapshot.n)} exact zeros"


def _range(drawn: Sequence[TensorSnapshot]) -> list[float] | None:
    """The middle 99.8 % of the weights, the same to both sides of zero."""
    reach = max((abs(q) for s in drawn for q in s.quantiles), default=0.0)
    return [-reach, reach] if reach else None
