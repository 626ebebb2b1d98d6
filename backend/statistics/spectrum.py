"""Singular values of a weight matrix, and the power law of their tail.

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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.linalg.gram import add_gram, is_fast
from backend.statistics.channels import short
from backend.statistics.names import SINGULAR_VALUES

MAX_SIDE = 2048  # of the smaller side: the time grows with its cube
NULL_THRESHOLD = 1e-6  # of the largest eigenvalue; those below are zeros up to rounding
ROUNDING_TOLERANCE = 1e-5  # a relative difference that is rounding
TAILS = 32  # fitted at once
PANEL = 192  # rows of W W^T per product; what lies below its diagonal is not needed
MIN_EIGENVALUES = 10  # eigenvalues a power law is fitted to


@dataclass(frozen=True)
class PowerLaw:
    """A fitted tail: exponent, where it begins, and how far from it the eigenvalues are."""

    alpha: float
    start: float
    distance: float


def singular_values(weight: Tensor) -> Tensor | None:
    """[min(out, in)], descending, float32 on the CPU; None where the matrix is too large, zero, or
    not finite."""
    W = weight.detach().float()
    W = W.T if W.shape[0] > W.shape[1] else W
    largest = W.abs().amax().item()
    if len(W) > MAX_SIDE or not 0 < largest < math.inf:
        return None
    unit = 2.0 ** (math.frexp(largest)[1] - 1)  # so that no square overflows
    eigenvalues = torch.linalg.eigvalsh(_squares(W / unit), UPLO="U")
    return eigenvalues.clamp_(min=0).sqrt_().mul_(unit).flip(0).cpu()


def _squares(W: Tensor) -> Tensor:
    """W W^T [rows, rows], on and above the diagonal."""
    squares, half = W.new_zeros(len(W), len(W)), W.bfloat16()
    if is_fast(half) and torch.equal(half.float(), W):  # nothing is rounded
        add_gram(squares, half.T)
        return squares
    for a in range(0, len(W), PANEL):
        squares[a : a + PANEL, a:].addmm_(W[a : a + PANEL], W[a:].T)
    return squares


def power_law(eigenvalues: np.ndarray) -> PowerLaw | None:
    """Fit the tail of positive eigenvalues [n], in any order; None where there are too few."""
    x = np.sort(eigenvalues.astype(np.float64))
    if len(x) < MIN_EIGENVALUES or x[-1] - x[0] <= ROUNDING_TOLERANCE * x[-1]:
        return None
    logs, n = np.log(x), np.arange(len(x), 0, -1)  # of the tail from i on
    spread = logs[::-1].cumsum()[::-1] - n * logs  # sum of ln(lambda / lambda_i) over it
    starts = np.flatnonzero(spread[:-1] > 0)
    alpha = 1 + n[starts] / spread[starts]
    parts = [slice(i, i + TAILS) for i in range(0, len(starts), TAILS)]
    if not parts:
        return None
    distance = np.concatenate([_distances(logs, starts[p], alpha[p]) for p in parts])
    best = distance.argmin()
    return PowerLaw(float(alpha[best]), float(x[starts[best]]), float(distance[best]))


def _distances(logs: np.ndarray, starts: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Of the tails from `starts` (ascending) on, each fitted with its `alpha`."""
    places, first = np.arange(starts[0], len(logs)), starts[:, None]
    fitted = 1 - np.exp((1 - alpha[:, None]) * np.maximum(logs[places] - logs[first], 0))
    empirical = np.maximum(places - first, 0) / (len(logs) - first)  # 0, as `fitted`, before a tail
    distances: np.ndarray = np.abs(fitted - empirical).max(1)
    return distances


def spectrum(weight: Tensor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Named figures and the profile of the singular values; both empty for a large matrix. Returns
    stable_rank, spectral_norm, and where a tail could be fitted alpha, alpha_distance and
    alpha_start (a singular value); singular values float32 [min(out, in)]."""
    sigma = singular_values(weight)
    if sigma is None:
        return {}, {}
    eigenvalues = sigma.double().square().numpy()
    norm = float(sigma[0])
    figures = {"stable_rank": float(eigenvalues.sum() / eigenvalues[0]), "spectral_norm": norm}
    fit = power_law(eigenvalues[eigenvalues > NULL_THRESHOLD * eigenvalues[0]])
    if fit:
        tail = {"alpha": fit.alpha, "alpha_distance": fit.distance, "alpha_start": fit.start**0.5}
        figures |= tail
    return figures, {SINGULAR_VALUES: short(sigma.numpy())}
