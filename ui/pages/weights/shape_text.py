"""The shape of a histogram in words: its peaks, the dip between them, and its zeros."""

from __future__ import annotations

import numpy as np

from ui.charts.series import Series
from ui.format import number, share

MIN_PROMINENCE = 0.12  # of a peak's height: what stands out less is no peak
SURE = 4.0  # times the square root of a bin's count: what stands out less may be chance
NEAR_CENTRE = 0.06  # of the axis


def shape_in_words(series: Series) -> str:
    """A sentence or two on the shape of a histogram and its zeros."""
    snapshot, zeros = series.snapshot, series.zero_share
    near = snapshot.stats.get("near_zero", zeros) - zeros
    exact = f"{share(zeros)} exact zeros" if zeros >= 0.001 else "no exact zeros"
    kurtosis = f"Kurtosis {number(snapshot.stats['kurtosis'], 3)}."
    return f"{_peaks_in_words(snapshot.counts)}: {exact}, {share(near)} close to zero. {kurtosis}"


def _peaks_in_words(counts: np.ndarray) -> str:
    places, heights = peaks(counts), smooth(counts)
    number_of = {1: "One peak", 2: "Two peaks", 3: "Three peaks"}
    words = number_of.get(len(places), f"{len(places)} peaks")
    if len(places) == 2:
        dip = heights[places[0] : places[1] + 1].min() / heights[places].min()
        words += f", with a dip between them to {share(dip, 0)} of their height"
    centre = (len(heights) - 1) / 2
    if len(places) == 3 and abs(places[1] - centre) < NEAR_CENTRE * len(heights):
        words += ", the middle one at zero"
    return words


def smooth(counts: np.ndarray) -> np.ndarray:
    """Counts in at most 128 bins, each averaged with its neighbours."""
    wide = counts.reshape(min(128, len(counts)), -1).sum(axis=1).astype(float)
    return np.convolve(np.pad(wide, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")


def peaks(counts: np.ndarray) -> np.ndarray:
    """Places of the peaks of a smoothed histogram that stand out from chance and from a plateau."""
    heights = smooth(counts)
    tops = [i for i in range(len(heights)) if heights[i] == heights[max(i - 1, 0) : i + 2].max()]
    return np.array([i for i in tops if heights[i] > 0 and _stands_out(heights, i)], dtype=int)


def _stands_out(heights: np.ndarray, top: int) -> bool:
    """Whether one must go down far enough from `top` on the way to anything higher."""
    height = heights[top]
    saddles = []
    for side in (heights[top::-1], heights[top:]):
        higher = np.flatnonzero(side > height)
        saddles.append(side[: higher[0]].min() if len(higher) else 0.0)
    prominence = height - max(saddles)
    return bool(prominence > max(MIN_PROMINENCE * height, SURE * height**0.5))
