"""Records of the statistics of one weight tensor at one stage, with the names and axes that jobs
and charts share. Does not import torch.

    |w| axis:  edges_k = std * 10^(FIRST_DECADE + k / PER_DECADE)

std is the standard deviation of the dense tensor. The first and last bins are open: they include
all smaller and all larger weights."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

FIRST_DECADE, LAST_DECADE, PER_DECADE = -4, 2, 24
MAGNITUDES = "magnitudes"  # profile: histogram over the |w| axis
SIDES = ("row", "column")  # output channels, input channels
MEASURES = ("norm", "max", "zeros")  # statistics of a channel
MAPS = ("mean", "max", "zeros", "change")  # statistics of a cell of a matrix
MAP_CELLS = 64  # maximum number of cells along each side
JOINT = "joint"  # profile: joint histogram of the weights before and after
JOINT_BINS = 64  # bins along each axis of the joint histogram
SINGULAR_VALUES = "singular_values"  # profile
ZERO_SHARE, RELATIVE_ERROR = "zero_share", "relative_error"  # statistics of a tensor
INPUT_ENERGY = "input_energy"  # profile: mean square of each input of a layer
# Profile of a layer: `FIGURES` x formats, see `backend.sensitivity.profile`.
SENSITIVITY = "sensitivity"
# Quantiles of a fan chart: name -> share.
FAN = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
BINS = 256  # bins of the histogram of a tensor
BASE_STATISTICS = frozenset(
    {  # statistics of every tensor, see `tensor_statistics`
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
# Factor of the range of a histogram: weight compensation increases the remaining weights.
HEADROOM = 1.5


def magnitude_edges(std: float) -> np.ndarray:
    """Edges of the |w| axis, float64 [145], in the unit of the weights."""
    steps = np.arange((LAST_DECADE - FIRST_DECADE) * PER_DECADE + 1)
    return (std or 1.0) * 10.0 ** (FIRST_DECADE + steps / PER_DECADE)


def histogram_edge(low: float, high: float) -> float:
    """Upper end of the histograms of a tensor, which start at its negative.

    Args:
        low: first of the `QUANTILES` of the dense weights.
        high: last of the `QUANTILES` of the dense weights.
    """
    return HEADROOM * max(abs(low), abs(high)) or 1.0


def channel_profile(side: str, measure: str) -> str:
    """Name of a profile over channels, such as "row_norm"."""
    return f"{side}_{measure}"


def map_profile(figure: str) -> str:
    """Name of a profile over the cells of a matrix, such as "map_mean"."""
    return f"map_{figure}"


@dataclass(frozen=True)
class TensorSnapshot:
    """Statistics and histogram of one tensor `[out, in]` at one stage.

    Attributes:
        tensor: full parameter name.
        block: index of its decoder block.
        module: module name inside the block.
        stage: name of the stage.
        n: number of values, the sum of `zeros`, `below`, `above` and `counts`.
        zeros: number of exact zeros, which no bin counts.
        below: number of values below `lo`.
        above: number of values above `hi`.
        lo: lower end of the histogram, the same for all stages of a tensor.
        hi: upper end of the histogram.
        counts: values in each of `BINS` equal bins.
        stats: named statistics, see `tensor_statistics`.
        quantiles: values at `QUANTILES`.
        step: training step of the measurement.
    """

    tensor: str
    block: int
    module: str
    stage: str
    n: int
    zeros: int
    below: int
    above: int
    lo: float
    hi: float
    counts: np.ndarray
    stats: dict[str, float]
    quantiles: tuple[float, ...] = field(default=())
    step: int = 0


@dataclass(frozen=True)
class TensorProfile:
    """One statistic per channel or group of a tensor `[out, in]` at one stage.

    Attributes:
        tensor: full parameter name.
        block: index of its decoder block.
        module: module name inside the block.
        stage: name of the stage.
        name: name of the statistic, such as "row_norm" or "magnitudes".
        values: float32, [out] or [in], or [out, groups] for groups along a row.
        step: training step of the measurement.
    """

    tensor: str
    block: int
    module: str
    stage: str
    name: str
    values: np.ndarray
    step: int = 0


class TensorRecorder(Protocol):
    """Receiver of the statistics of tensors; implemented by `Reporter`."""

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        """Record the statistics and the histogram of one tensor at one stage."""

    def profile(self, profile: TensorProfile) -> None:
        """Record one statistic per channel or group of one tensor at one stage."""
