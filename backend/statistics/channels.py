"""Statistics of every output channel (row) and input channel (column) of a weight matrix.

norm_i = sqrt(sum_j w_ij^2)      max_i = max_j |w_ij|      zeros_i = share of w_ij = 0"""

import numpy as np
from torch import Tensor

from backend.statistics.names import channel_profile

DROPPED_BITS = 12  # of the 23 mantissa bits


def channel_figures(weight: Tensor) -> dict[str, np.ndarray]:
    """Profile name -> float32 values, [out] for rows and [in] for columns.

    Values are rounded to a relative precision of 0.025 %, which halves the stored size. `weight`:
    [out, in]."""
    magnitude = weight.detach().float().abs()
    profiles = {}
    for side, along in (("row", 1), ("column", 0)):
        profiles[channel_profile(side, "norm")] = magnitude.square().sum(along).sqrt()
        profiles[channel_profile(side, "max")] = magnitude.amax(along)
    magnitude.sign_()
    for side, along in (("row", 1), ("column", 0)):
        profiles[channel_profile(side, "zeros")] = 1 - magnitude.mean(along)
    return {name: short(values.cpu().numpy()) for name, values in profiles.items()}


def short(values: np.ndarray) -> np.ndarray:
    """Round to float32 values with zeros in the last mantissa bits, which compress well."""
    half = np.uint32(1 << DROPPED_BITS - 1)
    mask = np.uint32(0xFFFFFFFF << DROPPED_BITS & 0xFFFFFFFF)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + half) & mask).view(np.float32)
