"""The weights of one tensor on the weight axis: laid over each other, mirrored, subtracted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ui.charts.series import (
    WIDTHS,
    Series,
    ceiling,
    limit_of,
    marks,
    reach,
    rows_of_legend,
    shared,
)
from ui.charts.template import axis, layout, ticks_to, tint
from ui.theme import LIGHT

MOST = 4
PER_BIN = "Share of all weights per bin, %"


def overlay(series: Sequence[Series], *, log_y: bool = False) -> go.Figure:
    """Histograms over each other; the first is filled, the shape the others are seen against."""
    drawn = shared(series)
    tensor = drawn[0].snapshot.tensor if drawn else ""
    view = f"{tensor}/{'log' if log_y else 'linear'}"
    height = axis(PER_BIN + (" (log axis)" if log_y else ""), nticks=6, uirevision=view)
    if log_y:
        height |= {"type": "log", "tickformat": "~g", "dtick": 1}
    else:
        height |= {"range": [0, ceiling(drawn)]}
    across = axis("Weight", showgrid=False, uirevision=view, range=None if log_y else reach(drawn))
    return go.Figure(
        [_outline(s, place, log_y) for place, s in enumerate(drawn)],
        layout(
            view=tensor,
            xaxis=across,
            yaxis=height,
            hovermode="x unified",
            **rows_of_legend(len(drawn)),
            **marks(drawn, both_sides=True),
        ),
    )


def _outline(series: Series, place: int, log_y: bool) -> go.Scatter:
    """A step line."""
    silhouette = place == 0 and series.snapshot.stage == "dense"
    heights = series.heights
    return go.Scatter(
        x=series.centres.tolist(),
        y=[None if log_y and h == 0 else float(h) for h in heights],
        customdata=series.snapshot.counts.tolist(),
        mode="lines",
        line={
            "shape": "hvh",
            "color": series.stroke.colour,
            "dash": series.stroke.dash,
            "width": 1 if silhouette else WIDTHS[min(place, len(WIDTHS) - 1)],
        },
        fill="tozeroy" if silhouette and not log_y else None,
        fillcolor=tint(series.stroke.colour, 0.25),
        name=series.title,
        hovertemplate=f"{series.label} %{{y:.3f}} %, n = %{{customdata:,.0f}}<extra></extra>",
    )


def mirror(above: Series, below: Series) -> go.Figure:
    """One histogram upwards, the other downwards, on the same scale."""
    up, down = shared([above, below])
    limit = ceiling([up, down])
    ticks = ticks_to(limit)
    tensor = up.snapshot.tensor
    return go.Figure(
        [_half(up, 1), _half(down, -1)],
        layout(
            view=tensor,
            xaxis=axis("Weight", showgrid=False, range=reach([up, down])),
            yaxis=axis(
                PER_BIN,
                range=[-limit, limit],
                tickvals=[-t for t in ticks[:0:-1]] + ticks,
                ticktext=[f"{t:g}" for t in ticks[:0:-1]] + [f"{t:g}" for t in ticks],
                zeroline=True,
                zerolinecolor=LIGHT.muted,
                zerolinewidth=1,
            ),
            hovermode="x unified",
            **rows_of_legend(2),
            **marks([up, down], both_sides=True),
        ),
    )


def _half(series: Series, sign: int) -> go.Scatter:
    heights = series.heights
    return go.Scatter(
        x=series.centres.tolist(),
        y=(sign * heights).tolist(),
        customdata=np.stack([heights, series.snapshot.counts], axis=-1).tolist(),
        mode="lines",
        line={
            "shape": "hvh",
            "color": series.stroke.colour,
            "dash": series.stroke.dash,
            "width": 1.5,
        },
        fill="tozeroy",
        fillcolor=tint(series.stroke.colour, 0.3),
        name=f"{'Above' if sign > 0 else 'Below'}: {series.title}",
        hovertemplate=(
            f"{series.label} %{{customdata[0]:.3f}} %, n = %{{customdata[1]:,.0f}}<extra></extra>"
        ),
    )


def difference(pairs: Sequence[tuple[Series, Series]]) -> go.Figure:
    """How much more of all weights lies in each bin than at the other of a pair.

    Args:
        pairs: each what is looked at, and what is taken from it.
    """
    both = shared([s for pair in pairs for s in pair])
    halves = list(zip(both[::2], both[1::2], strict=True))
    tensor = both[0].snapshot.tensor if both else ""
    gaps = [now.heights - base.heights for now, base in halves]
    limit = gap_limit(gaps)
    return go.Figure(
        [_gap(now, base, gap) for (now, base), gap in zip(halves, gaps, strict=True)],
        layout(
            view=tensor,
            xaxis=axis("Weight", showgrid=False, range=reach(both)),
            yaxis=axis(
                "Difference of shares per bin, points",
                range=[-limit, limit],
                zeroline=True,
                zerolinecolor=LIGHT.muted,
                zerolinewidth=1,
            ),
            hovermode="x unified",
            **rows_of_legend(len(halves)),
            **marks(both, both_sides=True),
        ),
    )


def gap_limit(gaps: Sequence[np.ndarray]) -> float:
    """Where the axis of a difference ends: what went away is always seen whole."""
    return limit_of(gaps, max((float(-gap.min()) for gap in gaps), default=0.0))


def gaps_beyond(pairs: Sequence[tuple[Series, Series]]) -> str:
    """In words: the peaks that the axis of their difference does not show whole."""
    both = shared([s for pair in pairs for s in pair])
    gaps = [(a.label, a.heights - b.heights) for a, b in zip(both[::2], both[1::2], strict=True)]
    limit = gap_limit([gap for _, gap in gaps])
    tall = [f"{label} {signed(float(g.max()))} points" for label, g in gaps if g.max() > limit]
    return f"Taller than the axis, at zero: {', '.join(tall)}." if tall else ""


def _gap(now: Series, base: Series, gap: np.ndarray) -> go.Scatter:
    same = now.snapshot.stage == base.snapshot.stage
    other = base.label.rsplit(", ", 1)[-1] if same else base.label  # two runs: name theirs alone
    zeros = 100 * (now.snapshot.zeros / now.snapshot.n - base.snapshot.zeros / base.snapshot.n)
    return go.Scatter(
        x=now.centres.tolist(),
        y=gap.tolist(),
        mode="lines",
        line={"shape": "hvh", "color": now.stroke.colour, "dash": now.stroke.dash, "width": 2},
        name=f"{now.label} less {other} · zeros {signed(zeros)} points",
        hovertemplate=f"{now.label} %{{y:+.3f}} points<extra></extra>",
    )


def signed(value: float) -> str:
    """+50.0, −0.3 or 0.0."""
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"
