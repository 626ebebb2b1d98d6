"""One tensor at one stage of one run, ready to be drawn; bins that several of them share. Heights
are shares of *all* weights; exact zeros are no bar, which would flatten all others, but a
number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.statistics.tensors import TensorSnapshot
from jobs.wording import extent
from ui.charts.template import line_look, reference_line, tint
from ui.format import count, number, share
from ui.theme import LIGHT, LineStyle

FULL = 100  # weights a bin should hold on average
MIN_WEIGHTS_PER_BIN = 64
PEAK_WIDTH = 0.06  # of the axis: where the tall peak of a re-dense tensor stands
PEAK_RATIO = 1.6  # a peak that many times higher than all else is cut off
ROOM = 1.25
PRUNED = 0.6  # of the most zeros any stage has
APART = 0.2  # relative; the labels of nearer thresholds would overlap
WIDTHS = (4.0, 3.25, 2.5, 2.0)
ROW = 20  # pixels of one legend row


@dataclass(frozen=True)
class Series:
    """One stage of one run as it is drawn; `magnitudes` are counts on the |w| axis."""

    snapshot: TensorSnapshot
    label: str
    stroke: LineStyle
    magnitudes: np.ndarray | None = None

    @property
    def edges(self) -> np.ndarray:
        return bin_edges(self.snapshot)

    @property
    def centres(self) -> np.ndarray:
        return (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def heights(self) -> np.ndarray:
        return 100 * self.snapshot.counts / self.snapshot.n

    @property
    def zero_share(self) -> float:
        return self.snapshot.zeros / self.snapshot.n

    @property
    def is_dense(self) -> bool:
        return self.snapshot.stage == "dense"

    @property
    def title(self) -> str:
        """The label with the exact zeros, which no bar shows: a count while they are few."""
        zeros = self.snapshot.zeros
        few = self.zero_share < 0.001
        amount = (count(zeros) if zeros else "no") if few else share(self.zero_share)
        return f"{self.label} · {amount} exact zeros"


def bin_edges(snapshot: TensorSnapshot) -> np.ndarray:
    return np.linspace(snapshot.lo, snapshot.hi, len(snapshot.counts) + 1)


def on_shared_bins(series: Sequence[Series]) -> list[Series]:
    """The series on the bins of the first, merged where a bin holds too few weights."""
    if not series:
        return []
    first, fewest = series[0].snapshot, min(s.snapshot.n for s in series)
    bins = len(first.counts)
    while bins > MIN_WEIGHTS_PER_BIN and fewest < FULL * bins:
        bins //= 2
    edges = np.linspace(first.lo, first.hi, bins + 1)
    return [replace(s, snapshot=_on(s.snapshot, edges)) for s in series]


def _on(snapshot: TensorSnapshot, edges: np.ndarray) -> TensorSnapshot:
    """Histogram on other bins; within an old bin, weights are assumed to be spread evenly."""
    own = bin_edges(snapshot)
    if own[0] == edges[0] and own[-1] == edges[-1]:
        counts = snapshot.counts.reshape(len(edges) - 1, -1).sum(axis=1)
        return replace(snapshot, counts=counts)
    upto = np.interp(edges, own, snapshot.below + np.concatenate([[0], snapshot.counts.cumsum()]))
    return replace(
        snapshot, counts=np.diff(upto), lo=edges[0], hi=edges[-1], below=round(upto[0]),
        above=round(snapshot.n - snapshot.zeros - upto[-1]),
    )  # fmt: skip


def ceiling(series: Sequence[Series]) -> float:
    """Limit of a linear height axis. A narrow peak at zero, such as re-dense tensors have, is cut
    off; a dense tensor never."""
    whole = [s.heights for s in series if s.is_dense]
    return axis_limit(
        [s.heights for s in series], max((float(h.max()) for h in whole), default=0.0)
    )


def axis_limit(curves: Sequence[np.ndarray], least: float) -> float:
    """Limit of an axis that shows `least` and everything but a narrow peak at zero."""
    highest = max((float(c.max()) for c in curves), default=0.0)
    besides = [float(np.abs(_besides_middle(c)).max()) for c in curves]
    seen = max([least, *besides])
    return ROOM * seen if 0 < PEAK_RATIO * seen < highest else 1.05 * max(highest, seen) or 1.0


def _besides_middle(heights: np.ndarray) -> np.ndarray:
    half = max(1, round(len(heights) * PEAK_WIDTH / 2))
    middle = len(heights) // 2
    return np.concatenate([heights[: middle - half], heights[middle + half :]])


def cut_off_peaks(series: Sequence[Series]) -> str:
    """Note on the peaks that a linear axis cuts off."""
    limit = ceiling(series)
    tall: dict[str, list[float]] = {}
    for s in series:
        if (top := float(s.heights.max())) > limit:
            tall.setdefault(s.label, []).append(top)
    peaks = [f"{label} {extent(tops, '{:.3g}'.format)} %" for label, tops in tall.items()]
    return f"Cut off at zero: {', '.join(peaks)}." if peaks else ""


def reach(series: Sequence[Series]) -> list[float] | None:
    """Range of the middle 99.8 % of the weights, symmetric about zero, within the bins."""
    far = max((abs(q) for s in series for q in s.snapshot.quantiles), default=0.0)
    far = min([far, *(s.snapshot.hi for s in series)])
    return [-far, far] if far else None


def series_note(series: Sequence[Series], whole: bool = False) -> str:
    """Number of weights and bins, and the weights beyond the bins, in words; `whole`: the axis
    shows all bins."""
    if not series:
        return ""
    first = series[0].snapshot
    words = [f"n = {count(first.n)} weights, {len(first.counts)} bins"]
    words += [] if whole else ["middle 99.8 % shown"]
    beyond = [s.snapshot.below + s.snapshot.above for s in series]
    if any(beyond):
        words.append(f"{extent(beyond, '{:,}'.format)} beyond ±{number(first.hi, 3)}")
    return ", ".join(words) + "."


def step_line(
    x: np.ndarray,
    y: np.ndarray | Sequence[float | None],
    stroke: LineStyle,
    width: float,
    *,
    fill: float = 0.0,
    **options: Any,
) -> go.Scatter:
    """Histogram as a step line, filled below with the opacity `fill`."""
    return go.Scatter(
        x=x.tolist(), y=np.asarray(y).tolist(), mode="lines",
        line=line_look(stroke, shape="hvh", width=width), fill="tozeroy" if fill else None,
        fillcolor=tint(stroke.colour, fill) if fill else None, **options,
    )  # fmt: skip


def line_width(place: int) -> float:
    """Line width by drawing order: a later line is thinner, so that the one below stays visible."""
    return WIDTHS[min(place, len(WIDTHS) - 1)]


def cutoffs(series: Sequence[Series]) -> list[tuple[float, str]]:
    """Magnitude thresholds of the pruned stages, (threshold, label), near ones once. A stage with
    far fewer zeros than another, such as a re-dense one, is not pruned."""
    most = max((s.zero_share for s in series), default=0.0)
    lines: list[tuple[float, str]] = []
    for s in series:
        at = s.snapshot.stats.get("cutoff")
        new = at and all(abs(at / other - 1) > APART for other, _ in lines)
        if at and new and s.zero_share > PRUNED * most:
            lines.append((at, f"threshold {number(at, 3)}"))
    return lines


def cutoff_lines(
    series: Sequence[Series], *, both_sides: bool, log: bool = False
) -> dict[str, Any]:
    lines = cutoffs(series)
    sides = (-1, 1) if both_sides else (1,)
    shapes = [reference_line(x=side * at, dash="dot") for at, _ in lines for side in sides]
    corner = {"xanchor": "right", "xshift": -4} if log else {"xshift": 4}
    notes = [
        {
            "x": np.log10(at) if log else at, "y": 1, "yref": "paper", "text": label,
            "yanchor": "top", "yshift": -ROW * place, "bgcolor": LIGHT.paper, **corner,
        }
        for place, (at, label) in enumerate(lines)
    ]  # fmt: skip
    return {"shapes": shapes, "annotations": notes}


def bins_frame(series: Sequence[Series]) -> pd.DataFrame | None:
    """Counts by bin, a column a series, without bins that are empty in all."""
    if not series:
        return None
    edges = series[0].edges
    frame = pd.DataFrame({"From": edges[:-1], "To": edges[1:]})
    for s in series:
        counts = s.snapshot.counts
        exact = np.issubdtype(counts.dtype, np.integer)
        frame[s.label] = counts if exact else counts.round().astype(int)
    return frame[frame[[s.label for s in series]].any(axis=1)]
