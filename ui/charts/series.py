"""Histograms of one tensor: overlaid stages of runs on common bins.

A height is a share of *all* weights, including exact zeros. The zeros have no bar of their own,
which would flatten all others; texts give their number."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.statistics.tensors import TensorSnapshot
from jobs.wording import extent
from ui.charts.chart import Chart, axis, layout, legend_rows, line_look, reference_line, tint
from ui.charts.headlines import zeros_headline
from ui.format import count, number, share
from ui.theme import LineStyle, declared

MIN_WEIGHTS_PER_BIN = 100  # average
PEAK_WIDTH = 0.06  # width of a re-dense tensor's peak around zero, as a share of the axis
PEAK_RATIO = 1.6  # a peak is cut off if it is this many times higher than all other bins
HEADROOM = 1.25  # height of the axis relative to the highest visible bin
LINE_WIDTHS = (4.0, 3.25, 2.5, 2.0)  # pixels, in drawing order
MAX_STAGES = 4


@dataclass(frozen=True)
class Series:
    """The histogram of one stage of one run.

    Attributes:
        snapshot: statistics of the tensor.
        label: name of the stage, with the run if several runs are compared.
        stroke: line style.
    """

    snapshot: TensorSnapshot
    label: str
    stroke: LineStyle

    @property
    def edges(self) -> np.ndarray:
        """Edges of the bins, `[bins + 1]`."""
        return bin_edges(self.snapshot)

    @property
    def heights(self) -> np.ndarray:
        """Share of all weights in each bin, %."""
        return 100 * self.snapshot.counts / self.snapshot.n

    @property
    def zero_share(self) -> float:
        """Share of exact zeros."""
        return self.snapshot.zeros / self.snapshot.n

    @property
    def is_dense(self) -> bool:
        """True for the original tensor."""
        return self.snapshot.stage == "dense"

    @property
    def title(self) -> str:
        """The label with the exact zeros: their number below 0.1 %, else their share."""
        zeros = self.snapshot.zeros
        are_few = self.zero_share < 0.001
        amount = (count(zeros) if zeros else "no") if are_few else share(self.zero_share)
        return f"{self.label} · {amount} exact zeros"


def bin_edges(snapshot: TensorSnapshot) -> np.ndarray:
    """Edges of a histogram's bins, `[bins + 1]`."""
    return np.linspace(snapshot.lo, snapshot.hi, len(snapshot.counts) + 1)


def on_shared_bins(series: Sequence[Series]) -> list[Series]:
    """The histograms on the bins of the first one, merged until bins hold enough weights."""
    if not series:
        return []
    first, fewest = series[0].snapshot, min(s.snapshot.n for s in series)
    bins = len(first.counts)
    while bins > 64 and fewest < MIN_WEIGHTS_PER_BIN * bins:
        bins //= 2
    edges = np.linspace(first.lo, first.hi, bins + 1)
    return [replace(s, snapshot=rebinned(s.snapshot, edges)) for s in series]


def rebinned(snapshot: TensorSnapshot, edges: np.ndarray) -> TensorSnapshot:
    """A histogram on other bins, on the assumption that weights are spread evenly in a bin.

    Args:
        edges: new edges, `[bins + 1]`.
    """
    old_edges = bin_edges(snapshot)
    if old_edges[0] == edges[0] and old_edges[-1] == edges[-1]:
        counts = snapshot.counts.reshape(len(edges) - 1, -1).sum(axis=1)
        return replace(snapshot, counts=counts)
    cumulative = snapshot.below + np.concatenate([[0], snapshot.counts.cumsum()])
    below_edges = np.interp(edges, old_edges, cumulative)
    return replace(
        snapshot,
        counts=np.diff(below_edges),
        lo=edges[0],
        hi=edges[-1],
        below=round(below_edges[0]),
        above=round(snapshot.n - snapshot.zeros - below_edges[-1]),
    )


def ceiling(series: Sequence[Series]) -> float:
    """The upper end of a linear height axis.

    The axis cuts off a tall narrow peak at zero, such as that of a re-dense tensor, which would
    flatten everything else. A dense tensor is never cut off."""
    highest = max((float(s.heights.max()) for s in series), default=0.0)
    visible = max((float(s.heights.max()) for s in series if s.is_dense), default=0.0)
    for heights in (s.heights for s in series):
        half, middle = max(1, round(len(heights) * PEAK_WIDTH / 2)), len(heights) // 2
        outside_peak = np.concatenate([heights[: middle - half], heights[middle + half :]])
        visible = max(visible, float(np.abs(outside_peak).max()))
    if 0 < PEAK_RATIO * visible < highest:
        return HEADROOM * visible
    return 1.05 * max(highest, visible) or 1.0


def cut_off_peaks(series: Sequence[Series]) -> str:
    """Note of the peaks that a linear axis cuts off, with their heights by label; else empty."""
    limit = ceiling(series)
    heights: dict[str, list[float]] = {}
    for s in series:
        if (peak := float(s.heights.max())) > limit:
            heights.setdefault(s.label, []).append(peak)
    peaks = [f"{label} {extent(values, '{:.3g}'.format)} %" for label, values in heights.items()]
    return f"Cut off at zero; in the tallest bin: {', '.join(peaks)}." if peaks else ""


def weight_range(series: Sequence[Series]) -> list[float] | None:
    """Range of the middle 99.8 % of the weights, symmetric around zero, within the bins; None
    without weights."""
    limit = max((abs(q) for s in series for q in s.snapshot.quantiles), default=0.0)
    limit = min([limit, *(s.snapshot.hi for s in series)])
    return [-limit, limit] if limit else None


def series_note(series: Sequence[Series]) -> str:
    """Note of a chart: number of weights and bins, and weights outside the bins."""
    if not series:
        return ""
    first = series[0].snapshot
    parts = [f"n = {count(first.n)} weights, {len(first.counts)} bins", "middle 99.8 % shown"]
    outside = [s.snapshot.below + s.snapshot.above for s in series]
    if any(outside):
        parts.append(f"{extent(outside, '{:,}'.format)} lie beyond ±{number(first.hi, 3)}")
    if any(s.snapshot.zeros for s in series):
        parts.append("exact zeros left out")
    return ", ".join(parts) + "."


def step_line(
    x: np.ndarray,
    y: np.ndarray | Sequence[float | None],
    stroke: LineStyle,
    width: float,
    *,
    fill: float = 0.0,
    **options: Any,
) -> go.Scatter:
    """A histogram as a step line; `fill`: opacity of the area below it, 0 for none."""
    return go.Scatter(
        x=x.tolist(),
        y=np.asarray(y).tolist(),
        mode="lines",
        line=line_look(stroke, shape="hvh", width=width),
        fill="tozeroy" if fill else None,
        fillcolor=tint(stroke.color, fill) if fill else None,
        **options,
    )


def cutoffs(series: Sequence[Series]) -> list[float]:
    """The magnitude thresholds of pruned stages; of similar thresholds only the first.

    Only pruning has a threshold: zeros from rounding or regrowth were not selected by magnitude."""
    thresholds: list[float] = []
    for s in series:
        value = s.snapshot.stats.get("cutoff") if declared(s.snapshot.stage).pruned else None
        # labels of closer thresholds would overlap
        if value and all(abs(value / other_value - 1) > 0.2 for other_value in thresholds):
            thresholds.append(value)
    return thresholds


def cutoff_note(series: Sequence[Series]) -> str:
    """Note that explains the threshold lines; empty without any."""
    values = " and ".join(number(value, 3) for value in cutoffs(series))
    return f"Dotted: magnitude threshold at the same sparsity, {values}." if values else ""


def bins_frame(series: Sequence[Series]) -> pd.DataFrame | None:
    """Histograms on common bins as a table, without bins that are empty in all of them."""
    if not series:
        return None
    edges = series[0].edges
    frame = pd.DataFrame({"From": edges[:-1], "To": edges[1:]})
    for s in series:
        counts = s.snapshot.counts
        is_integer = np.issubdtype(counts.dtype, np.integer)
        frame[s.label] = counts if is_integer else counts.round().astype(int)
    return frame[frame[[s.label for s in series]].any(axis=1)]


def overlay(series: Sequence[Series], *, log_y: bool = False) -> go.Figure:
    """Overlaid histograms; a dense tensor that comes first is a filled shape."""
    drawn = on_shared_bins(series)
    tensor = drawn[0].snapshot.tensor if drawn else ""
    view = f"{tensor}/{'log' if log_y else 'linear'}"
    thresholds = [sign * value for value in cutoffs(drawn) for sign in (-1, 1)]
    y_range: dict[str, Any] = {"dtick": 1} if log_y else {"range": [0, ceiling(drawn)]}
    figure_layout = layout(
        view=tensor,
        hovermode="x unified",
        yaxis=axis(
            "Share of all weights per bin, %", log=log_y, nticks=6, uirevision=view, **y_range
        ),
        xaxis=axis(
            "Weight", showgrid=False, range=None if log_y else weight_range(drawn), uirevision=view
        ),
        **legend_rows(len(drawn)),
        shapes=[reference_line(x=x, dash="dot") for x in thresholds],
    )
    return go.Figure([_outline(s, index, log_y) for index, s in enumerate(drawn)], figure_layout)


def overlay_chart(series: Sequence[Series], *notes: str, figure: go.Figure | None = None) -> Chart:
    """The chart of `overlay`, or of another figure of the same histograms, with data and notes."""
    binned = on_shared_bins(series)
    notes = (series_note(binned), cut_off_peaks(binned), cutoff_note(binned), *notes)
    title = zeros_headline([(s.label, s.zero_share) for s in series])
    note = " ".join(filter(None, notes))
    return Chart(figure or overlay(series), bins_frame(binned), note, headline=title)


def _outline(series: Series, index: int, log_y: bool) -> go.Scatter:
    """The step line of a histogram; a dense tensor that is drawn first is a filled shape.

    A log axis omits empty bins.

    Args:
        index: number in drawing order, from 0.
    """
    filled = index == 0 and series.is_dense
    return step_line(
        (series.edges[:-1] + series.edges[1:]) / 2,
        [None if log_y and h == 0 else float(h) for h in series.heights],
        series.stroke,
        # later lines are thinner, so that the edges of the lines below stay visible
        1 if filled else LINE_WIDTHS[min(index, len(LINE_WIDTHS) - 1)],
        fill=0.25 if filled and not log_y else 0.0,
        customdata=series.snapshot.counts.tolist(),
        name=series.title,
        hovertemplate=f"{series.label} %{{y:.3f}} %, n = %{{customdata:,.0f}}<extra></extra>",
    )
