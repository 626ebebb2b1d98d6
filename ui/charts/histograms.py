"""The weights of one tensor on the weight axis: laid over each other, mirrored, subtracted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ui.charts.series import (
    Series,
    axis_limit,
    ceiling,
    cutoff_lines,
    line_width,
    on_shared_bins,
    reach,
    step_line,
)
from ui.charts.template import axis, layout, legend_rows, ticks_to
from ui.theme import LIGHT

MAX_STAGES = 4
PER_BIN = "Share of all weights per bin, %"
ZERO_LINE: dict[str, Any] = {
    "zeroline": True, "zerolinecolor": LIGHT.muted, "zerolinewidth": 1,
}  # fmt: skip


def overlay(series: Sequence[Series], *, log_y: bool = False) -> go.Figure:
    """Histograms over each other; the first is filled, the shape the others are seen against."""
    drawn = on_shared_bins(series)
    view = f"{_tensor(drawn)}/{'log' if log_y else 'linear'}"
    height = height_axis(log_y, range=None if log_y else [0, ceiling(drawn)], uirevision=view)
    across = {"range": None if log_y else reach(drawn), "uirevision": view}
    outlines = [
        stage_outline(s, s.centres, s.heights, s.snapshot.counts, place, log_y)
        for place, s in enumerate(drawn)
    ]
    return go.Figure(outlines, _layout(drawn, len(drawn), height, **across))


def height_axis(log_y: bool, **options: Any) -> dict[str, Any]:
    """The axis of shares per bin."""
    decades = {"dtick": 1} if log_y else {}
    return axis(PER_BIN, log=log_y, nticks=6, **decades, **options)


def stage_outline(
    series: Series, centres: np.ndarray, heights: np.ndarray, counts: np.ndarray, place: int,
    log_y: bool,
) -> go.Scatter:  # fmt: skip
    """The histogram of a stage, [bins] each, as a step line; the dense tensor, drawn first, as a
    filled shape. A log axis leaves out empty bins. `place`: in the order of drawing."""
    filled = place == 0 and series.is_dense
    return step_line(
        centres, [None if log_y and h == 0 else float(h) for h in heights], series.stroke,
        1 if filled else line_width(place), fill=0.25 if filled and not log_y else 0.0,
        customdata=counts.tolist(), name=series.title,
        hovertemplate=f"{series.label} %{{y:.3f}} %, n = %{{customdata:,.0f}}<extra></extra>",
    )  # fmt: skip


def mirror(above: Series, below: Series) -> go.Figure:
    """One histogram upwards, the other downwards, on the same scale."""
    up, down = on_shared_bins([above, below])
    limit = ceiling([up, down])
    ticks = ticks_to(limit)
    below_zero = ticks[:0:-1]
    height = axis(
        PER_BIN, range=[-limit, limit], tickvals=[-t for t in below_zero] + ticks,
        ticktext=[f"{t:g}" for t in below_zero + ticks], **ZERO_LINE,
    )  # fmt: skip
    halves = [_half(up, 1, "Above"), _half(down, -1, "Below")]
    return go.Figure(halves, _layout([up, down], 2, height))


def _half(series: Series, sign: int, side: str) -> go.Scatter:
    heights = series.heights
    return step_line(
        series.centres, sign * heights, series.stroke, 1.5, fill=0.3,
        customdata=np.stack([heights, series.snapshot.counts], axis=-1).tolist(),
        name=f"{side}: {series.title}",
        hovertemplate=f"{series.label} %{{customdata[0]:.3f}} %, "
        "n = %{customdata[1]:,.0f}<extra></extra>",
    )  # fmt: skip


def difference(pairs: Sequence[tuple[Series, Series]]) -> go.Figure:
    """How much more of all weights lies in each bin of the first of a pair than of the second."""
    both = _pairs_on_shared_bins(pairs)
    gaps = [now.heights - base.heights for now, base in both]
    limit = _gap_limit(gaps)
    height = axis("Difference of shares per bin, points", range=[-limit, limit], **ZERO_LINE)
    traces = [_gap(now, base, gap) for (now, base), gap in zip(both, gaps, strict=True)]
    return go.Figure(traces, _layout([s for pair in both for s in pair], len(both), height))


def difference_note(pairs: Sequence[tuple[Series, Series]]) -> str:
    """In words: the peaks that the axis of their difference does not show whole."""
    gaps = [(a.label, a.heights - b.heights) for a, b in _pairs_on_shared_bins(pairs)]
    limit = _gap_limit([gap for _, gap in gaps])
    tall = [f"{label} {signed(float(g.max()))} points" for label, g in gaps if g.max() > limit]
    return f"Cut off at zero: {', '.join(tall)}." if tall else ""


def _pairs_on_shared_bins(pairs: Sequence[tuple[Series, Series]]) -> list[tuple[Series, Series]]:
    both = on_shared_bins([s for pair in pairs for s in pair])
    return list(zip(both[::2], both[1::2], strict=True))


def _gap_limit(gaps: Sequence[np.ndarray]) -> float:
    """Where the axis of a difference ends: what went away is always seen whole."""
    return axis_limit(gaps, max((float(-gap.min()) for gap in gaps), default=0.0))


def _gap(now: Series, base: Series, gap: np.ndarray) -> go.Scatter:
    same = now.snapshot.stage == base.snapshot.stage
    other = base.label.rsplit(", ", 1)[-1] if same else base.label  # two runs: name theirs alone
    zeros = 100 * (now.zero_share - base.zero_share)
    return step_line(
        now.centres, gap, now.stroke, 2,
        name=f"{now.label} − {other} · zeros {signed(zeros)} points",
        hovertemplate=f"{now.label} %{{y:+.3f}} points<extra></extra>",
    )  # fmt: skip


def signed(value: float) -> str:
    """+50.0, −0.3 or 0.0."""
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"


def _tensor(drawn: Sequence[Series]) -> str:
    return drawn[0].snapshot.tensor if drawn else ""


def _layout(
    drawn: Sequence[Series], rows: int, height: dict[str, Any], **across: Any
) -> dict[str, Any]:
    """The layout of a chart over the weight axis, whose legend has so many rows."""
    return layout(
        view=_tensor(drawn), yaxis=height, hovermode="x unified",
        xaxis=axis("Weight", showgrid=False, **({"range": reach(drawn)} | across)),
        **legend_rows(rows), **cutoff_lines(drawn, both_sides=True),
    )  # fmt: skip
