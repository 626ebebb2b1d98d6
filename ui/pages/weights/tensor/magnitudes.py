"""How large the weights of one tensor are: |w| on a log axis, as a histogram and added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.statistics.names import magnitude_edges
from ui.charts.chart import Chart
from ui.charts.headlines import of_medians
from ui.charts.histograms import height_axis, stage_outline
from ui.charts.series import FULL, Series, cutoff_lines, line_width
from ui.charts.template import axis, layout, legend_rows, line_look
from ui.format import count, number

MERGED = (1, 2, 3)
TAIL_SHARE = 1e-4  # of all weights: left out of the axis, and counted in the note


@dataclass(frozen=True)
class Magnitudes:
    """The |w| histogram of a series, as drawn. The bins at both ends are open."""

    series: Series
    edges: np.ndarray
    counts: np.ndarray

    @property
    def heights(self) -> np.ndarray:
        """Share of all weights in each bin, %."""
        return 100 * self.counts / self.series.snapshot.n

    @property
    def centres(self) -> np.ndarray:
        return np.sqrt(self.edges[:-1] * self.edges[1:])

    @property
    def median(self) -> float:
        """Of the magnitudes besides zero, as far as the bins tell it."""
        half = np.searchsorted(self.counts.cumsum(), self.counts.sum() / 2)
        return float(self.centres[min(half, len(self.counts) - 1)])

    @property
    def smaller(self) -> np.ndarray:
        """Share of all weights below each edge but the first, %: zeros and the bins so far."""
        return 100 * (self.series.snapshot.zeros + self.counts.cumsum()) / self.series.snapshot.n


def magnitudes_of(series: Sequence[Series]) -> list[Magnitudes]:
    """The |w| histograms of those that have one; few weights in wider bins."""
    return [_magnitudes(s, s.magnitudes) for s in series if s.magnitudes is not None]


def _magnitudes(series: Series, counts: np.ndarray) -> Magnitudes:
    stats, bins = series.snapshot.stats, len(counts)
    edges = magnitude_edges(stats.get("dense_std", stats["std"]))
    # A bell curve fills about a third of the axis.
    enough = (m for m in MERGED if 3 * series.snapshot.n >= FULL * bins / m)
    by = next(enough, MERGED[-1])
    return Magnitudes(series, edges[::by], counts.reshape(-1, by).sum(axis=1))


def magnitude_chart(series: Sequence[Series], *, log_y: bool) -> Chart:
    """`magnitude_histogram` with its figures as a table and its note."""
    drawn = magnitudes_of(series)
    figure = magnitude_histogram(drawn, log_y=log_y)
    return Chart(
        figure, magnitudes_frame(drawn), magnitudes_note(drawn),
        headline=of_medians([(m.series.label, m.median) for m in drawn]),
    )  # fmt: skip


def cumulative_chart(series: Sequence[Series]) -> Chart:
    """`cumulative` with its figures as a table and its note."""
    drawn = magnitudes_of(series)
    return Chart(
        cumulative(drawn), magnitudes_frame(drawn), magnitudes_note(drawn),
        headline=of_medians([(m.series.label, m.median) for m in drawn]),
    )  # fmt: skip


def magnitude_histogram(drawn: Sequence[Magnitudes], *, log_y: bool = False) -> go.Figure:
    """Step lines over log |w|."""
    view = f"{_tensor(drawn)}/{'log' if log_y else 'linear'}"
    height = height_axis(log_y, rangemode="normal" if log_y else "tozero", uirevision=view)
    outlines = [
        stage_outline(m.series, m.centres, m.heights, m.counts, place, log_y)
        for place, m in enumerate(drawn)
    ]
    return go.Figure(outlines, _layout(drawn, f"{view}/magnitude", height))


def cumulative(drawn: Sequence[Magnitudes]) -> go.Figure:
    """How many weights are smaller than |w|. A line starts at the share of exact zeros."""
    height = axis("Share of weights that are smaller, %", range=[0, 100], nticks=6)
    sums = [_sum(m, place) for place, m in enumerate(drawn)]
    return go.Figure(sums, _layout(drawn, f"{_tensor(drawn)}/cumulative", height))


def magnitudes_note(drawn: Sequence[Magnitudes]) -> str:
    """In words: how many weights and bins, and what lies beyond the axis."""
    if not drawn:
        return ""
    low, high = _reach(drawn)
    n = drawn[0].series.snapshot.n
    per_decade = round(1 / np.log10(drawn[0].edges[1] / drawn[0].edges[0]))
    words = [f"n = {count(n)} weights, {per_decade} bins for each factor of ten."]
    beyond = [
        f"{m.series.label} {int(m.counts[m.edges[1:] <= low].sum()):,} and "
        f"{int(m.counts[m.edges[:-1] >= high].sum()):,}"
        for m in drawn
        if m.counts[(m.edges[1:] <= low) | (m.edges[:-1] >= high)].sum()
    ]
    if beyond:
        edges = f"Smaller than {number(low, 2)} and larger than {number(high, 2)}"
        words.append(f"{edges}: {', '.join(beyond)}.")
    return " ".join(words)


def magnitudes_frame(drawn: Sequence[Magnitudes]) -> pd.DataFrame:
    """The histograms as a table, a row a bin that is not empty."""
    columns = ["Stage", "|w| from", "To", "Weights", "Smaller than that, %"]
    rows = (
        (m.series.label, low, high, int(n), smaller)
        for m in drawn
        for low, high, n, smaller in zip(
            m.edges[:-1], m.edges[1:], m.counts, m.smaller, strict=True
        )
        if n
    )
    return pd.DataFrame(rows, columns=columns)


def _sum(m: Magnitudes, place: int) -> go.Scatter:
    return go.Scatter(
        x=m.edges[1:].tolist(), y=m.smaller.tolist(), mode="lines", name=m.series.title,
        line=line_look(m.series.stroke, width=line_width(place)),
        hovertemplate=f"{m.series.label} %{{y:.2f}} %<extra></extra>",
    )  # fmt: skip


def _layout(drawn: Sequence[Magnitudes], view: str, height: dict[str, Any]) -> dict[str, Any]:
    ends = [float(x) for x in np.log10(_reach(drawn))] if drawn else None
    return layout(
        view=view,
        xaxis=axis("|Weight|", log=True, dtick=1, showgrid=False, range=ends),
        yaxis=height,
        hovermode="x unified",
        **legend_rows(len(drawn)),
        **cutoff_lines([m.series for m in drawn], both_sides=False, log=True),
    )


def _reach(drawn: Sequence[Magnitudes]) -> tuple[float, float]:
    """Where the axis begins and ends: nearly all weights that are not zero lie between, and the
    two open bins lie beyond."""
    lows, highs = [], []
    for m in drawn:
        upto = m.counts.cumsum() / max(m.counts.sum(), 1)
        first = int(np.searchsorted(upto, 10 * TAIL_SHARE, side="right"))
        last = int(np.searchsorted(upto, 1 - TAIL_SHARE)) + 1
        lows.append(m.edges[max(1, first)])
        highs.append(m.edges[min(last, len(m.counts) - 1)])
    return min(lows), max(highs)


def _tensor(drawn: Sequence[Magnitudes]) -> str:
    return drawn[0].series.snapshot.tensor if drawn else ""
