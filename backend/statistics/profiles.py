"""Profiles of a weight matrix: channel statistics, maps, a joint histogram, and singular values.

Statistics of every output channel (row) and input channel (column):

    norm_i = sqrt(sum_j w_ij^2)      max_i = max_j |w_ij|      zeros_i = share of w_ij = 0

Maps over the cells of a coarse grid, and the joint histogram of weights before and after:

    mean_c    = mean of |w| in cell c           max_c    = largest |w| in cell c
    zeros_c   = share of w = 0 in cell c        change_c = mean of (|w| - |w_dense|) in cell c
    joint_ab  = number of weights in bin a before (dense) and in bin b after (this stage)

A cell holds about out/64 x in/64 neighbors. Both axes of the joint histogram span the tensor's
histogram in 64 bins; the outermost bins include values beyond it. Map values are rounded to levels
that the eye can distinguish, which keeps the maps of 210 tensors below 20 MB.

Singular values, and the power law of their tail:

    lambda_i    = sigma_i^2, the eigenvalues of W W^T (or W^T W, whichever is smaller)
    stable rank = sum_i lambda_i / lambda_max                       between 1 and the rank
    p(lambda) ~ lambda^-alpha  for lambda >= lambda_min:
    alpha       = 1 + n / sum_i ln(lambda_i / lambda_min)           n eigenvalues in the tail
    distance    = max |F_empirical - F_fitted| over the tail        Kolmogorov-Smirnov

lambda_min minimizes the distance (Clauset, Shalizi, Newman 2009). Martin and Mahoney (2021) find
2 < alpha < 6 in well-trained layers; their tool WeightWatcher uses the same fit.

Eigenvalues are computed in float32. Those of the fitted tail are exact to five digits; singular
values below a thousandth of the largest are not."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from backend.linalg.gram import add_gram, add_gram_in_pytorch, is_fast
from backend.statistics.tensors import (
    JOINT_BINS,
    MAP_CELLS,
    SINGULAR_VALUES,
    channel_profile,
    map_profile,
)

DROPPED_BITS = 12  # mantissa bits, out of 23, that rounding sets to 0
LEVELS = 63  # levels from 0 to the largest value of a map
MAX_SIDE = 2048  # limit of the smaller side of a matrix; time grows with its cube
NULL_THRESHOLD = 1e-6  # relative to the largest eigenvalue; smaller ones are zero up to rounding
ROUNDING_TOLERANCE = 1e-5  # relative difference that rounding can cause
TAILS = 32  # tails to fit at a time
MIN_EIGENVALUES = 10  # minimum number of eigenvalues for the fit of a power law


def channel_figures(weight: Tensor) -> dict[str, np.ndarray]:
    """Profiles over the channels of a matrix.

    Values are rounded to a relative precision of 0.025 %, which halves the stored size.

    Args:
        weight: [out, in].

    Returns:
        profile name -> float32 values, [out] for rows and [in] for columns.
    """
    magnitude = weight.detach().float().abs()
    profiles = {}
    for side, dim in (("row", 1), ("column", 0)):
        profiles[channel_profile(side, "norm")] = magnitude.square().sum(dim).sqrt()
        profiles[channel_profile(side, "max")] = magnitude.amax(dim)
    magnitude.sign_()
    for side, dim in (("row", 1), ("column", 0)):
        profiles[channel_profile(side, "zeros")] = 1 - magnitude.mean(dim)
    return {name: round_mantissa(values.cpu().numpy()) for name, values in profiles.items()}


def round_mantissa(values: np.ndarray) -> np.ndarray:
    """Round to float32 values whose last `DROPPED_BITS` mantissa bits are 0; they compress well."""
    half = np.uint32(1 << DROPPED_BITS - 1)
    mask = np.uint32(0xFFFFFFFF << DROPPED_BITS & 0xFFFFFFFF)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + half) & mask).view(np.float32)


def matrix_maps(weight: Tensor, dense: Tensor | None = None) -> dict[str, np.ndarray]:
    """Maps of a matrix over a grid of at most 64 by 64 cells.

    Args:
        weight: [out, in].
        dense: dense weights [out, in]; None omits the map of changes.

    Returns:
        profile name -> float32 [rows, columns], in the unit of the weights.
    """
    magnitude = weight.detach().float().abs()
    size = min(len(magnitude), MAP_CELLS), min(magnitude.shape[1], MAP_CELLS)
    means = partial(_cells, size, torch.mean, adaptive_avg_pool2d)
    maps = {
        "mean": means(magnitude),
        "max": _cells(size, torch.amax, adaptive_max_pool2d, magnitude),
    }
    if dense is not None:
        maps["change"] = means(magnitude - dense.detach().float().abs())
    maps["zeros"] = 1 - means(magnitude.sign_())
    return {map_profile(name): rounded(values) for name, values in maps.items()}


def joint_histogram(weight: Tensor, dense: Tensor, edge: float) -> np.ndarray:
    """Joint histogram of the dense weights and the weights of a stage.

    Args:
        weight: [out, in].
        dense: [out, in].
        edge: upper end of the tensor's histogram.

    Returns:
        counts [64 dense bins, 64 bins of `weight`], float32; their sum is the number of weights.
    """
    scale = JOINT_BINS / (2 * edge)
    # Conversion to integers rounds these non-negative values down to the index of their bin.
    dense_bins, bins = (
        x.detach().float().flatten().add(edge).mul_(scale).clamp_(0, JOINT_BINS - 1).short()
        for x in (dense, weight)
    )
    joint_bins = dense_bins.mul_(JOINT_BINS).add_(bins)
    counts = torch.bincount(joint_bins, minlength=JOINT_BINS**2)
    return counts.view(JOINT_BINS, JOINT_BINS).cpu().numpy().astype(np.float32)


def _cells(
    size: tuple[int, int],
    reduce: Callable[[Tensor, int], Tensor],
    pool: Callable[[Tensor, tuple[int, int]], Tensor],
    values: Tensor,
) -> Tensor:
    """Reduce a matrix [out, in] to one value per cell, [*size].

    Usually all cells have the same size. Pooling, which handles uneven cells, takes several times
    as long."""
    if values.shape[0] % size[0] or values.shape[1] % size[1]:
        return pool(values[None, None], size)[0, 0]
    # Reducing the rows first reads contiguous memory.
    rows = reduce(values.view(size[0], -1, values.shape[1]), 1)
    return reduce(rows.view(*size, -1), 2)


def rounded(values: Tensor) -> np.ndarray:
    """Round to multiples of 1/63 of the largest magnitude; 0 stays 0."""
    unit = values.abs().amax().clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
    return (values / unit).round_().mul_(unit).cpu().numpy()


def singular_values(weight: Tensor) -> Tensor | None:
    """Singular values [min(out, in)] in descending order, float32 on the CPU.

    Returns None if the matrix is too large, zero, or not finite."""
    W = weight.detach().float()
    W = W.T if W.shape[0] > W.shape[1] else W
    largest = W.abs().amax().item()
    if len(W) > MAX_SIDE or not 0 < largest < math.inf:
        return None
    unit = 2.0 ** (math.frexp(largest)[1] - 1)  # scaling by it prevents overflow of squares
    W = W / unit
    gram, half = W.new_zeros(len(W), len(W)), W.bfloat16()  # W W^T, on and above the diagonal
    if is_fast(half) and torch.equal(half.float(), W):  # bfloat16 is exact for these weights
        add_gram(gram, half.T)
    else:
        add_gram_in_pytorch(gram, W.T, W.dtype)
    eigenvalues = torch.linalg.eigvalsh(gram, UPLO="U")
    return eigenvalues.clamp_(min=0).sqrt_().mul_(unit).flip(0).cpu()


def power_law(eigenvalues: np.ndarray) -> dict[str, float]:
    """Fit a power law to the tail of positive eigenvalues [n], in any order.

    Returns:
        alpha, alpha_distance, and alpha_start, the singular value at the start of the tail; empty
        if there are too few eigenvalues.
    """
    x = np.sort(eigenvalues.astype(np.float64))
    if len(x) < MIN_EIGENVALUES or x[-1] - x[0] <= ROUNDING_TOLERANCE * x[-1]:
        return {}
    # For each possible start i of the tail: its length, and its sum of ln(lambda / lambda_i).
    logs, lengths = np.log(x), np.arange(len(x), 0, -1)
    log_sums = logs[::-1].cumsum()[::-1] - lengths * logs
    starts = np.flatnonzero(log_sums[:-1] > 0)
    alpha = 1 + lengths[starts] / log_sums[starts]
    parts = [slice(i, i + TAILS) for i in range(0, len(starts), TAILS)]
    if not parts:
        return {}
    distance = np.concatenate([_distances(logs, starts[p], alpha[p]) for p in parts])
    best = distance.argmin()
    return {
        "alpha": float(alpha[best]),
        "alpha_distance": float(distance[best]),
        "alpha_start": float(x[starts[best]]) ** 0.5,
    }


def _distances(logs: np.ndarray, starts: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Kolmogorov-Smirnov distances of the tails at `starts` (ascending) to their fits `alpha`."""
    indices, first = np.arange(starts[0], len(logs)), starts[:, None]
    # Both distributions are 0 before the start of a tail.
    fitted = 1 - np.exp((1 - alpha[:, None]) * np.maximum(logs[indices] - logs[first], 0))
    empirical = np.maximum(indices - first, 0) / (len(logs) - first)
    distances: np.ndarray = np.abs(fitted - empirical).max(1)
    return distances


def spectrum(weight: Tensor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Spectral statistics and the profile of the singular values.

    Returns:
        stable_rank, spectral_norm and the results of `power_law` by name; and profile name ->
        singular values, float32 [min(out, in)]. Both are empty if `singular_values` returns None.
    """
    sigma = singular_values(weight)
    if sigma is None:
        return {}, {}
    eigenvalues = sigma.double().square().numpy()
    norm = float(sigma[0])
    stats = {"stable_rank": float(eigenvalues.sum() / eigenvalues[0]), "spectral_norm": norm}
    stats |= power_law(eigenvalues[eigenvalues > NULL_THRESHOLD * eigenvalues[0]])
    return stats, {SINGULAR_VALUES: round_mantissa(sigma.numpy())}
