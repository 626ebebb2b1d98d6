"""Recorded statistics of one weight tensor at one stage: its distribution and its profiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

BINS = 256
BASE_STATISTICS = frozenset({  # of every tensor; see `tensor_statistics`
    "zero_share", "near_zero", "mean", "std", "skewness", "kurtosis", "min", "max", "smallest",
    "l1", "l2", "dense_std",
})  # fmt: skip
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class TensorSnapshot:
    """Statistics and histogram of one tensor `[out, in]` at one stage.

    The histogram counts nonzero values in `BINS` equal bins from `lo` to `hi`; `zeros`, `below`
    and `above` count the rest, so that
    `counts.sum() + zeros + below + above == n`. All stages of a tensor share `lo` and `hi`.

    Attributes:
        tensor: full parameter name; `block` is its decoder block, `module` its name inside it.
        stage, step: when it was taken.
        stats: named statistics, see `tensor_statistics`.
        quantiles: values at `QUANTILES`.
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
        name: of the statistic, such as "row_norm" or "magnitudes".
        values: float32, [out] or [in] for channels, [out, groups] for groups along a row.
        tensor, block, module, stage, step: as in `TensorSnapshot`.
    """

    tensor: str
    block: int
    module: str
    stage: str
    name: str
    values: np.ndarray
    step: int = 0


class TensorRecorder(Protocol):
    """Receives the statistics of tensors; implemented by `Reporter`."""

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        """Record the statistics and the histogram of one tensor at one stage."""

    def profile(self, profile: TensorProfile) -> None:
        """Record one statistic per channel or group of one tensor at one stage."""
