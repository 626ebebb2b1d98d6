"""Profiles of a weight matrix: statistics of its channels, pictures of it, its singular values.

Of every output channel (row) and input channel (column):

    norm_i = sqrt(sum_j w_ij^2)      max_i = max_j |w_ij|      zeros_i = share of w_ij = 0

Pictures are means over the cells of a coarse grid, and where weights went:

    mean_c    = mean of |w| in cell c           max_c  = largest |w| in it
    zeros_c   = share of w = 0 in it            change_c = mean of (|w| - |w_dense|) in it
    joint_ab  = number of weights in bin a before (dense) and in bin b after (this stage)

A cell holds about out/64 x in/64 neighbors. Both axes of the joint histogram are those of the
tensor's histogram, in 64 bins; the outermost hold what lies beyond. Figures are rounded to levels
that an eye tells apart, which keeps the maps of 210 tensors below 20 MB.

Singular values, and the power law of their tail:

    lambda_i    = sigma_i^2, the eigenvalues of W W^T (or W^T W, whichever is smaller)
    stable rank = sum_i lambda_i / lambda_max                       between 1 and the rank
    p(lambda) ~ lambda^-alpha  for lambda >= lambda_min:
    alpha       = 1 + n / sum_i ln(lambda_i / lambda_min)           n eigenvalues in the tail
    distance    = max |F_empirical - F_fitted| over the tail        Kolmogorov-Smirnov

lambda_min is the one with the smallest distance (Clauset, Shalizi, Newman 2009). Martin and Mahoney
(2021) find 2 < alpha < 6 in well-trained layers; WeightWatcher, their tool, fits the same.

Eigenvalues are computed in float32: those of the tail, which are fitted, are exact to five digits,
singular values below a thousandth of the largest are not."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from backend.linalg.gram import add_gram, is_fast
from backend.statistics.tensors import (
    JOINT_BINS,
    MAP_CELLS,
    SINGULAR_VALUES,
    channel_profile,
    map_profile,
)

DROPPED_BITS = 12  # of the 23 mantissa bits
LEVELS = 63  # from 0 to the largest figure of a map
MAX_SIDE = 2048  # of the smaller side: the time grows with its cube
NULL_THRESHOLD = 1e-6  # of the largest eigenvalue; those below are zeros up to rounding
ROUNDING_TOLERANCE = 1e-5  # a relative difference that is rounding
TAILS = 32  # fitted at once
PANEL = 192  # rows of W W^T per product; what lies below its diagonal is not needed
MIN_EIGENVALUES = 10  # eigenvalues a power law is fitted to


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


def matrix_maps(weight: Tensor, dense: Tensor | None = None) -> dict[str, np.ndarray]:
    """Profile name -> float32 [rows, columns], at most 64 of each; in the unit of the weights.
    `weight`: [out, in]. `dense`: the same matrix before; None: there is no change to show."""
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
    """Counts [64 dense bins, 64 bins of `weight`], float32; together the number of weights.
    `weight`, `dense`: [out, in]. `edge`: of the tensor's histogram."""
    scale = JOINT_BINS / (2 * edge)
    before, after = (
        x.detach().float().flatten().add(edge).mul_(scale).clamp_(0, JOINT_BINS - 1).short()
        for x in (dense, weight)
    )  # the bin of each value, rounded down, being positive
    both = before.mul_(JOINT_BINS).add_(after)
    counts = torch.bincount(both, minlength=JOINT_BINS**2)
    return counts.view(JOINT_BINS, JOINT_BINS).cpu().numpy().astype(np.float32)


def _cells(
    size: tuple[int, int],
    reduce: Callable[[Tensor, int], Tensor],
    pool: Callable[[Tensor, tuple[int, int]], Tensor],
    values: Tensor,
) -> Tensor:
    """A figure of each cell of a matrix [out, in]: `size`. Mostly all cells have the same size:
    pooling for uneven ones takes several times as long. Rows are taken together first, as they lie
    behind each other."""
    if values.shape[0] % size[0] or values.shape[1] % size[1]:
        return pool(values[None, None], size)[0, 0]
    rows = reduce(values.view(size[0], -1, values.shape[1]), 1)
    return reduce(rows.view(*size, -1), 2)


def rounded(values: Tensor) -> np.ndarray:
    """To multiples of 1/63 of the largest magnitude; 0 stays 0."""
    unit = values.abs().amax().clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
    return (values / unit).round_().mul_(unit).cpu().numpy()


def singular_values(weight: Tensor) -> Tensor | None:
    """[min(out, in)], descending, float32 on the CPU; None where the matrix is too large, zero, or
    not finite."""
    W = weight.detach().float()
    W = W.T if W.shape[0] > W.shape[1] else W
    largest = W.abs().amax().item()
    if len(W) > MAX_SIDE or not 0 < largest < math.inf:
        return None
    unit = 2.0 ** (math.frexp(largest)[1] - 1)  # so that no square overflows
    W = W / unit
    squares, half = W.new_zeros(len(W), len(W)), W.bfloat16()  # W W^T, on and above the diagonal
    if is_fast(half) and torch.equal(half.float(), W):  # nothing is rounded
        add_gram(squares, half.T)
    else:
        for a in range(0, len(W), PANEL):
            squares[a : a + PANEL, a:].addmm_(W[a : a + PANEL], W[a:].T)
    eigenvalues = torch.linalg.eigvalsh(squares, UPLO="U")
    return eigenvalues.clamp_(min=0).sqrt_().mul_(unit).flip(0).cpu()


def power_law(eigenvalues: np.ndarray) -> dict[str, float]:
    """Fit the tail of positive eigenvalues [n], in any order; empty where there are too few.
    Returns alpha, alpha_distance, and the singular value alpha_start where the tail begins."""
    x = np.sort(eigenvalues.astype(np.float64))
    if len(x) < MIN_EIGENVALUES or x[-1] - x[0] <= ROUNDING_TOLERANCE * x[-1]:
        return {}
    logs, n = np.log(x), np.arange(len(x), 0, -1)  # of the tail from i on
    spread = logs[::-1].cumsum()[::-1] - n * logs  # sum of ln(lambda / lambda_i) over it
    starts = np.flatnonzero(spread[:-1] > 0)
    alpha = 1 + n[starts] / spread[starts]
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
    """Of the tails from `starts` (ascending) on, each fitted with its `alpha`."""
    places, first = np.arange(starts[0], len(logs)), starts[:, None]
    fitted = 1 - np.exp((1 - alpha[:, None]) * np.maximum(logs[places] - logs[first], 0))
    empirical = np.maximum(places - first, 0) / (len(logs) - first)  # 0, as `fitted`, before a tail
    distances: np.ndarray = np.abs(fitted - empirical).max(1)
    return distances


def spectrum(weight: Tensor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Named figures and the profile of the singular values; both empty for a large matrix. Returns
    stable_rank, spectral_norm, and those of `power_law`; singular values float32 [min(out, in)]."""
    sigma = singular_values(weight)
    if sigma is None:
        return {}, {}
    eigenvalues = sigma.double().square().numpy()
    norm = float(sigma[0])
    figures = {"stable_rank": float(eigenvalues.sum() / eigenvalues[0]), "spectral_norm": norm}
    figures |= power_law(eigenvalues[eigenvalues > NULL_THRESHOLD * eigenvalues[0]])
    return figures, {SINGULAR_VALUES: short(sigma.numpy())}
