"""Distribution of the weights of one tensor at one stage, computed from one sorted copy.

    cut-off(p) = the magnitude below which the fraction p of the weights lies

Magnitude pruning of a tensor to sparsity p removes the weights below cut-off(p).

    skewness = E[z^3],  kurtosis = E[z^4] (3 for a normal distribution),  z = (w - mean) / std

Statistics include exact zeros; the histogram excludes them. Its edges come from the dense tensor
(`scale_of`), so that charts can overlay the stages of a tensor."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from backend.statistics.profiles import DROPPED_BITS, round_mantissa
from backend.statistics.tensors import BINS, QUANTILES, histogram_edge, magnitude_edges

MAX_SORTED = 2**17  # number of values above which rounding and counting replace sorting
ROUNDED_NUMBERS = 2 ** (32 - DROPPED_BITS)  # number of bit patterns that rounding leaves
NEAR_ZERO = 0.05  # in standard deviations of the dense tensor


def ascending(values: Tensor) -> Tensor:
    """Sort `values` [..., n] along the last dimension, smallest first."""
    values = values.detach()
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    # On a CPU, NumPy sorts float32 about twenty times faster than PyTorch.
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def ordered_values(weight: Tensor) -> Tensor:
    """Sorted values of a weight tensor, float32 [n], rounded as in `comparable`.

    The values of a large tensor are counted, which takes a tenth of the time of sorting."""
    values = comparable(weight)
    if not _needs_rounding(values):
        return ascending(values)
    bits = torch.from_numpy(values.numpy().view(np.int32) >> DROPPED_BITS)
    counts = torch.bincount(bits.add_(ROUNDED_NUMBERS // 2), minlength=ROUNDED_NUMBERS)
    return torch.from_numpy(np.repeat(_rounded_numbers(), _by_value(counts.numpy())))


def comparable(weight: Tensor) -> Tensor:
    """Values of a weight tensor, float32 [n].

    On a CPU, those of a large tensor are rounded to a relative precision of 0.025 %, which changes
    no 16-bit value."""
    values = weight.detach().float().flatten()
    return torch.from_numpy(round_mantissa(values.numpy())) if _needs_rounding(values) else values


def _needs_rounding(values: Tensor) -> bool:
    return values.device.type == "cpu" and len(values) > MAX_SORTED


@lru_cache
def _rounded_numbers() -> np.ndarray:
    """All numbers that rounding can produce, sorted, float32."""
    bits = np.arange(-ROUNDED_NUMBERS // 2, ROUNDED_NUMBERS // 2, dtype=np.int32) << DROPPED_BITS
    return _by_value(bits.view(np.float32))


def _by_value(by_bits: np.ndarray) -> np.ndarray:
    """Reorder entries from the order of their bits as integers to the order of their values. The
    bits of negative floats increase as the value decreases."""
    negative, positive = np.split(by_bits, 2)
    return np.concatenate([negative[::-1], positive])


def smallest(values: Tensor, rank: int) -> Tensor:
    """Value [...] of rank `rank` (0: smallest) along the last dimension of `values`."""
    if values.device.type == "cpu":
        partitioned = np.partition(values.detach().numpy(), rank, axis=-1)
        return torch.as_tensor(partitioned[..., rank])
    return ascending(values)[..., rank]


def magnitude_counts(ordered: Tensor, std: float) -> Tensor:
    """Count the weights in each bin of the |w| axis, without exact zeros.

    Args:
        ordered: sorted weights [n].
        std: standard deviation of the dense tensor, the unit of the axis.

    Returns:
        int64 [144] on the CPU; the sum plus the number of exact zeros is n.
    """
    inner = torch.from_numpy(magnitude_edges(std)[1:-1]).to(ordered)
    negative = torch.searchsorted(ordered, ordered.new_zeros(()))
    positive = torch.searchsorted(ordered, ordered.new_zeros(()), right=True)
    end = torch.tensor([len(ordered)], device=ordered.device)
    above = torch.cat([positive[None], torch.searchsorted(ordered, inner), end])
    below = torch.cat([negative[None], torch.searchsorted(ordered, -inner, right=True)])
    return (above.diff() - torch.cat([below, below.new_zeros(1)]).diff()).cpu()


def cutoff(ordered: Tensor, share: float) -> float:
    """Largest magnitude among the fraction `share` of smallest weights, or 0 if it is empty.

    Args:
        ordered: sorted weights [n].
        share: fraction of the weights.
    """
    # Bisection over the number of negative weights among the k with the smallest magnitude.
    if not (k := round(share * len(ordered))):
        return 0.0
    split = int(torch.searchsorted(ordered, ordered.new_zeros(())))
    n = len(ordered)
    low, high = max(0, k - (n - split)), min(k, split)
    while low < high:
        negatives = (low + high) // 2
        # Include one more negative weight if it is smaller than the largest positive weight.
        if -ordered[split - 1 - negatives] < ordered[split + k - negatives - 1]:
            low = negatives + 1
        else:
            high = negatives
    largest = [-ordered[split - low]] if low else []
    largest += [ordered[split + k - low - 1]] if k > low else []
    return max(x.item() for x in largest)


def scale_of(ordered: Tensor) -> tuple[float, float]:
    """Scale that all stages of a tensor share, from its sorted dense weights [n].

    Returns:
        edge of the histogram, 1.5 times the larger absolute 0.1 % quantile, and standard deviation.
    """
    low, high = quantiles(ordered, (QUANTILES[0], QUANTILES[-1]))
    return histogram_edge(low, high), _moments(ordered)[1] ** 0.5


def quantiles(ordered: Tensor, shares: tuple[float, ...] = QUANTILES) -> tuple[float, ...]:
    """Quantiles of `ordered` [n] at `shares`, with linear interpolation as in numpy."""
    ranks = torch.tensor(shares, dtype=torch.float64) * (len(ordered) - 1)
    below = ranks.floor().long()
    above = ranks.ceil().long()
    low, high = ordered[below].double().cpu(), ordered[above].double().cpu()
    return tuple((low + (high - low) * (ranks - below)).tolist())


def tensor_statistics(ordered: Tensor, dense_std: float) -> dict[str, float]:
    """Named statistics of all values of a tensor.

    Args:
        ordered: sorted values, float32 [n].
        dense_std: standard deviation of the dense tensor.

    Returns:
        zero_share (exact zeros), near_zero (|w| < 0.05 dense_std), mean, std, skewness, kurtosis,
        min, max, smallest (non-zero |w|, or 0 if all weights are 0), l1 (sum of |w|), l2 (root of
        the sum of squares) and dense_std. Skewness and kurtosis of a constant tensor are 0.
    """
    n, near = len(ordered), NEAR_ZERO * dense_std
    negative, near_end = torch.searchsorted(ordered, ordered.new_tensor([0.0, near])).tolist()
    edges = ordered.new_tensor([-near, 0.0])
    near_start, first_positive = torch.searchsorted(ordered, edges, right=True).tolist()
    positive = n - first_positive
    mean, variance, skewness, kurtosis = _moments(ordered)
    magnitudes = [-ordered[negative - 1].item()] if negative else []
    magnitudes += [ordered[first_positive].item()] if positive else []
    return {
        "zero_share": (n - negative - positive) / n,
        "near_zero": max(near_end - near_start, 0) / n,
        "mean": mean,
        "std": variance**0.5,
        "skewness": skewness,
        "kurtosis": kurtosis,
        "min": ordered[0].item(),
        "max": ordered[-1].item(),
        "smallest": min(magnitudes, default=0.0),
        "l1": (ordered[first_positive:].sum() - ordered[:negative].sum()).item(),
        "l2": (n * (variance + mean * mean)) ** 0.5,
        "dense_std": dense_std,
    }


def _moments(ordered: Tensor) -> tuple[float, float, float, float]:
    """Mean, variance, skewness and kurtosis of sorted values.

    Values are centered first to avoid cancellation, and scaled by the largest deviation so that
    fourth powers of weights from 1e-12 to 1e12 stay within the float32 range."""
    mean = ordered.mean().item()
    if ordered[0] == ordered[-1]:
        return mean, 0.0, 0.0, 0.0
    centered = ordered - mean
    unit = max(-centered[0].item(), centered[-1].item())
    squares = centered.div_(unit).square()
    variance = squares.mean().item()
    third = centered.mul_(squares).mean().item()
    fourth = squares.square_().mean().item()
    return mean, unit * unit * variance, third / variance**1.5, fourth / variance**2


def histogram(ordered: Tensor, edge: float) -> tuple[Tensor, int, int, int]:
    """Histogram with `BINS` equal bins from -edge to edge.

    Bins include their left edge, the last bin both edges. Exact zeros are in no bin.

    Args:
        ordered: sorted values [n].
        edge: upper end of the last bin.

    Returns:
        counts int64 [BINS], and the numbers of zeros, of values below and of values above the bins.
        The sum of all counts is n.
    """
    edges = torch.linspace(-edge, edge, BINS + 1, dtype=ordered.dtype, device=ordered.device)
    edges[BINS // 2] = 0.0
    positions = torch.searchsorted(ordered, edges)
    positions[-1] = torch.searchsorted(ordered, edges[-1], right=True)
    zeros = int(torch.searchsorted(ordered, edges[BINS // 2], right=True) - positions[BINS // 2])
    counts = positions.diff().cpu()
    counts[BINS // 2] -= zeros
    return counts, zeros, int(positions[0]), int(len(ordered) - positions[-1])
