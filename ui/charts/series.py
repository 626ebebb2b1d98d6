"""One tensor at one stage of one run, ready to be drawn, and its stages over each other on bins
that they share. A height is a share of *all* weights, exact zeros too, which are no bar, as it
would flatten all others: they are counted in words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.statistics.tensors import TensorSnapshot
from jobs.wording import extent
from ui.charts.chart import Chart, axis, layout, legend_rows, line_look, reference_line, tint
from ui.charts.headlines import of_zeros
from ui.format import count, number, share
from ui.theme import LineStyle, declared

FULL = 100  # weights a bin should hold on average
PEAK_WIDTH = 0.06  # of the axis: where the tall peak of a re-dense tensor stands
PEAK_RATIO = 1.6  # a peak that many times higher than all else is cut off
ROOM = 1.25
WIDTHS = (4.0, 3.25, 2.5, 2.0)
MAX_STAGES = 4


@dataclass(frozen=True)
class Series:
    """What is drawn of one stage of one run; `label` names the stage, and the run where there are
    two."""

    snapshot: TensorSnapshot
    label: str
    stroke: LineStyle

    @property
    def edges(self) -> np.ndarray:
        """Of the bins, one more than there are."""
        return bin_edges(self.snapshot)

    @property
    def heights(self) -> np.ndarray:
        """Share of all weights in each bin, %."""
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
    """One more than there are bins."""
    return np.linspace(snapshot.lo, snapshot.hi, len(snapshot.counts) + 1)


def on_shared_bins(series: Sequence[Series]) -> list[Series]:
    """On the bins of the first, merged where a bin holds too few weights to have a shape."""
    if not series:
        return []
    first, fewest = series[0].snapshot, min(s.snapshot.n for s in series)
    bins = len(first.counts)
    while bins > 64 and fewest < FULL * bins:
        bins //= 2
    edges = np.linspace(first.lo, first.hi, bins + 1)
    return [replace(s, snapshot=rebinned(s.snapshot, edges)) for s in series]


def rebinned(snapshot: TensorSnapshot, edges: np.ndarray) -> TensorSnapshot:
    """A histogram on other bins, between whose old edges weights are taken to be spread evenly."""
    own = bin_edges(snapshot)
    if own[0] == edges[0] and own[-1] == edges[-1]:
        counts = snapshot.counts.reshape(len(edges) - 1, -1).sum(axis=1)
        return replace(snapshot, counts=counts)
    upto = np.interp(edges, own, snapshot.below + np.concatenate([[0], snapshot.counts.cumsum()]))
    return replace(
        snapshot,
        counts=np.diff(upto),
        lo=edges[0],
        hi=edges[-1],
        below=round(upto[0]),
        above=round(snapshot.n - snapshot.zeros - upto[-1]),
    )


def ceiling(series: Sequence[Series]) -> float:
    """Where a linear height axis ends: it cuts off a tall narrow peak at zero, such as a re-dense
    tensor has, which would flatten all else. A dense tensor is always seen whole."""
    highest = max((float(s.heights.max()) for s in series), default=0.0)
    seen = max((float(s.heights.max()) for s in series if s.is_dense), default=0.0)
    for curve in (s.heights for s in series):
        half, middle = max(1, round(len(curve) * PEAK_WIDTH / 2)), len(curve) // 2
        besides = np.concatenate([curve[: middle - half], curve[middle + half :]])
        seen = max(seen, float(np.abs(besides).max()))
    return ROOM * seen if 0 < PEAK_RATIO * seen < highest else 1.05 * max(highest, seen) or 1.0


def cut_off_peaks(series: Sequence[Series]) -> str:
    """In words: the peaks a linear axis does not show whole; of many panels, how tall they are."""
    limit = ceiling(series)
    tall: dict[str, list[float]] = {}
    for s in series:
        if (top := float(s.heights.max())) > limit:
            tall.setdefault(s.label, []).append(top)
    peaks = [f"{label} {extent(tops, '{:.3g}'.format)} %" for label, tops in tall.items()]
    return f"Cut off at zero; in the tallest bin: {', '.join(peaks)}." if peaks else ""


def reach(series: Sequence[Series]) -> list[float] | None:
    """The middle 99.8 % of the weights, the same to both sides of zero, as far as bins go."""
    far = max((abs(q) for s in series for q in s.snapshot.quantiles), default=0.0)
    far = min([far, *(s.snapshot.hi for s in series)])
    return [-far, far] if far else None


def series_note(series: Sequence[Series]) -> str:
    """In words: how many weights and bins there are, and what lies beyond the bins."""
    if not series:
        return ""
    first = series[0].snapshot
    words = [f"n = {count(first.n)} weights, {len(first.counts)} bins", "middle 99.8 % shown"]
    beyond = [s.snapshot.below + s.snapshot.above for s in series]
    if any(beyond):
        words.append(f"{extent(beyond, '{:,}'.format)} lie beyond ±{number(first.hi, 3)}")
    if any(s.snapshot.zeros for s in series):
        words.append("exact zeros left out")
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
    """A histogram as a line, with the shape below it filled where `fill`, its opacity, is given."""
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
    """The magnitude thresholds of the pruned stages drawn, neighbors once. Zeros that rounding or
    regrowth left have none: nobody chose them."""
    lines: list[float] = []
    for s in series:
        at = s.snapshot.stats.get("cutoff") if declared(s.snapshot.stage).pruned else None
        # the labels of nearer thresholds would overlap
        if at and all(abs(at / other - 1) > 0.2 for other in lines):
            lines.append(at)
    return lines


def cutoff_note(series: Sequence[Series]) -> str:
    """In words: what the lines are, and where."""
    lines = " and ".join(number(at, 3) for at in cutoffs(series))
    return f"Dotted: magnitude threshold at the same sparsity, {lines}." if lines else ""


def bins_frame(series: Sequence[Series]) -> pd.DataFrame | None:
    """The histograms, which share their bins, as a table, without bins that are empty in all."""
    if not series:
        return None
    edges = series[0].edges
    frame = pd.DataFrame({"From": edges[:-1], "To": edges[1:]})
    for s in series:
        counts = s.snapshot.counts
        exact = np.issubdtype(counts.dtype, np.integer)
        frame[s.label] = counts if exact else counts.round().astype(int)
    return frame[frame[[s.label for s in series]].any(axis=1)]


def overlay(series: Sequence[Series], *, log_y: bool = False) -> go.Figure:
    """Histograms over each other; the first is filled, the shape the others are seen against."""
    drawn = on_shared_bins(series)
    tensor = drawn[0].snapshot.tensor if drawn else ""
    view = f"{tensor}/{'log' if log_y else 'linear'}"
    thresholds = [side * at for at in cutoffs(drawn) for side in (-1, 1)]
    decades: dict[str, Any] = {"dtick": 1} if log_y else {"range": [0, ceiling(drawn)]}
    looks = layout(
        view=tensor,
        hovermode="x unified",
        yaxis=axis(
            "Share of all weights per bin, %", log=log_y, nticks=6, uirevision=view, **decades
        ),
        xaxis=axis(
            "Weight", showgrid=False, range=None if log_y else reach(drawn), uirevision=view
        ),
        **legend_rows(len(drawn)),
        shapes=[reference_line(x=x, dash="dot") for x in thresholds],
    )
    return go.Figure([_outline(s, place, log_y) for place, s in enumerate(drawn)], looks)


def overlay_chart(series: Sequence[Series], *more: str, figure: go.Figure | None = None) -> Chart:
    """`overlay`, or another figure of the same histograms, with its data and what it leaves out."""
    binned = on_shared_bins(series)
    notes = (series_note(binned), cut_off_peaks(binned), cutoff_note(binned), *more)
    title = of_zeros([(s.label, s.zero_share) for s in series])
    note = " ".join(filter(None, notes))
    return Chart(figure or overlay(series), bins_frame(binned), note, headline=title)


def _outline(series: Series, place: int, log_y: bool) -> go.Scatter:
    """The histogram of a stage as a step line; the dense tensor, drawn first, as a filled shape. A
    log axis leaves out empty bins. `place`: in the order of drawing."""
    filled = place == 0 and series.is_dense
    return step_line(
        (series.edges[:-1] + series.edges[1:]) / 2,
        [None if log_y and h == 0 else float(h) for h in series.heights],
        series.stroke,
        # a line that hides another leaves its rim to be seen
        1 if filled else WIDTHS[min(place, len(WIDTHS) - 1)],
        fill=0.25 if filled and not log_y else 0.0,
        customdata=series.snapshot.counts.tolist(),
        name=series.title,
        hovertemplate=f"{series.label} %{{y:.3f}} %, n = %{{customdata:,.0f}}<extra></extra>",
    )
