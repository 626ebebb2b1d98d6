"""Recorded statistics of one weight tensor at one stage: its distribution and its profiles,
with the names and axes that jobs and charts share. Does not import torch.

    |w| axis:  edges_k = std * 10^(FIRST_DECADE + k / PER_DECADE),  std: of the dense tensor

The first and last bins are open: they include all smaller and all larger weights."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

FIRST_DECADE, LAST_DECADE, PER_DECADE = -4, 2, 24
MAGNITUDES = "magnitudes"  # profile with the histogram over the |w| axis
SIDES = ("row", "column")  # output channels, input channels
MEASURES = ("norm", "max", "zeros")
MAPS = ("mean", "max", "zeros", "change")  # of a matrix, over the cells of a grid
MAP_CELLS = 64  # along each side, at most
JOINT = "joint"  # counts over the weights before and after
JOINT_BINS = 64
SINGULAR_VALUES = "singular_values"
ZERO_SHARE, RELATIVE_ERROR = "zero_share", "relative_error"  # statistics of a tensor
INPUT_ENERGY = "input_energy"  # mean square of each input of a layer
SENSITIVITY = (
    "sensitivity"  # profile of a layer: `FIGURES` x formats, see `backend.sensitivity.profile`
)
FAN = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
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


def magnitude_edges(std: float) -> np.ndarray:
    """The 145 edges of the |w| axis, float64, in the unit of the weights."""
    steps = np.arange((LAST_DECADE - FIRST_DECADE) * PER_DECADE + 1)
    return (std or 1.0) * 10.0 ** (FIRST_DECADE + steps / PER_DECADE)


def histogram_edge(low: float, high: float) -> float:
    """The histograms of a tensor run from -edge to edge; `low`, `high`: the outermost `QUANTILES`
    of its dense weights."""
    return HEADROOM * max(abs(low), abs(high)) or 1.0


def channel_profile(side: str, measure: str) -> str:
    """The name of a profile over channels, such as "row_norm"."""
    return f"{side}_{measure}"


def map_profile(figure: str) -> str:
    """The name of a profile over the cells of a matrix, such as "map_mean"."""
    return f"map_{figure}"


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
