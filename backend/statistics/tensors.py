"""Recorded statistics of one weight tensor at one stage: its distribution and its profiles."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

BINS = 256
BASE_STATISTICS = frozenset(
    {  # of every tensor; see `tensor_statistics`
        "zero_share",
        "near_zero",
        "mean",
        "std",
        "skewness",
        "kurtosis",
        "min",
        "max",
        "smallest",
        "l1",
        "l2",
        "dense_std",
    }
)
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


HEADROOM = 1.5  # of a histogram: weight compensation makes the remaining weights larger


def histogram_edge(low: float, high: float) -> float:
    """The histograms of a tensor run from -edge to edge; `low`, `high`: the outermost `QUANTILES`
    of its dense weights."""
    return HEADROOM * max(abs(low), abs(high)) or 1.0


@dataclass(frozen=True)
class TensorSnapshot:
    """Statistics and histogram of one tensor `[out, in]` at one stage.

    The histogram counts nonzero values in `BINS` equal bins from `lo` to `hi`, `zeros`, `below` and
    `above` the rest, together n. All stages of a tensor share `lo` and `hi`."""

    tensor: str  # full parameter name
    block: int  # its decoder block
    module: str  # its name inside the block
    stage: str
    n: int
    zeros: int
    below: int
    above: int
    lo: float
    hi: float
    counts: np.ndarray
    stats: dict[str, float]  # named statistics, see `tensor_statistics`
    quantiles: tuple[float, ...] = field(default=())  # values at `QUANTILES`
    step: int = 0


@dataclass(frozen=True)
class TensorProfile:
    """One statistic per channel or group of a tensor `[out, in]` at one stage."""

    tensor: str
    block: int
    module: str
    stage: str
    name: str  # of the statistic, such as "row_norm" or "magnitudes"
    values: np.ndarray  # float32, [out] or [in], or [out, groups] for groups along a row
    step: int = 0


class TensorRecorder(Protocol):
    """Receives the statistics of tensors; implemented by `Reporter`."""

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        """Record the statistics and the histogram of one tensor at one stage."""

    def profile(self, profile: TensorProfile) -> None:
        """Record one statistic per channel or group of one tensor at one stage."""
