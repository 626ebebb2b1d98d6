"""The shape of a histogram in words: its peaks, the hole between them, and its zeros."""

from __future__ import annotations

import numpy as np

from ui.charts.series import Series
from ui.format import number, share

FLAT = 0.12  # of a peak's height: what stands out less is no peak
SURE = 4.0  # times the square root of a bin's count: what stands out less may be chance
NEAR_CENTRE = 0.06  # of the axis


def shape_in_words(series: Series) -> str:
    """A sentence or two on the shape of a histogram and its zeros."""
    taken = series.snapshot
    found, heights = peaks(taken.counts), smooth(taken.counts)
    shape = {1: "One hump", 2: "Two humps", 3: "Three peaks"}.get(len(found), f"{len(found)} peaks")
    if len(found) == 2:
        low = heights[found[0] : found[1] + 1].min() / heights[found].min()
        shape += f", and between them a hole down to {share(low, 0)} of their height"
    if len(found) == 3 and _central(found[1], len(heights)):
        shape += ", the middle one at zero"
    zeros = taken.zeros / taken.n
    near = taken.stats.get("near_zero", zeros) - zeros
    exact = (
        f"{share(zeros)} of the weights are exactly zero" if zeros >= 0.001 else "no exact zeros"
    )
    tails = f"Kurtosis {number(taken.stats['kurtosis'], 3)}."
    return f"{shape}: {exact}, {share(near)} close to zero. {tails}"


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
    return bool(prominence > max(FLAT * height, SURE * height**0.5))


def _central(place: int, bins: int) -> bool:
    return abs(place - (bins - 1) / 2) < NEAR_CENTRE * bins
