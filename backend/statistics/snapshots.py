"""Statistics of one weight tensor at one stage, computed from one sorted copy of its values.

    skewness = E[z^3],  kurtosis = E[z^4] (3 for a normal distribution),  z = (w - mean) / std

Statistics include exact zeros; the histogram excludes them. Its edges come from the dense tensor
(`HistogramScale`), so that the stages of a tensor can be overlaid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.statistics.tensors import BINS, QUANTILES, histogram_edge

NEAR_ZERO = 0.05  # in standard deviations of the dense tensor


@dataclass(frozen=True)
class HistogramScale:
    """Reference scale for all stages of one tensor, from the dense tensor."""

    edge: float  # the histogram runs from -edge to edge
    std: float  # standard deviation of the dense weights


def scale_of(ordered: Tensor) -> HistogramScale:
    """The scale of dense weights, sorted [n]: 1.5 times their larger absolute 0.1 % quantile, and
    their standard deviation."""
    low, high = quantiles(ordered, (QUANTILES[0], QUANTILES[-1]))
    return HistogramScale(histogram_edge(low, high), _moments(ordered)[1] ** 0.5)


def quantiles(ordered: Tensor, shares: tuple[float, ...] = QUANTILES) -> tuple[float, ...]:
    """Quantiles of `ordered` [n] at `shares`, with linear interpolation as in numpy."""
    places = torch.tensor(shares, dtype=torch.float64) * (len(ordered) - 1)
    below = places.floor().long()
    above = places.ceil().long()
    left, right = ordered[below].double().cpu(), ordered[above].double().cpu()
    return tuple((left + (right - left) * (places - below)).tolist())


def tensor_statistics(ordered: Tensor, dense_std: float) -> dict[str, float]:
    """Named statistics of all values of a tensor. `ordered`: its values sorted, float32 [n].
    Returns zero_share (exact zeros), near_zero (|w| < 0.05 dense standard deviations), mean, std,
    skewness, kurtosis, min, max, smallest (|w| that is not 0; 0 when all are), l1 (sum of |w|), l2
    (root of the sum of squares), dense_std. Skewness and kurtosis of a constant tensor are 0."""
    n, near = len(ordered), NEAR_ZERO * dense_std
    negative, to_near = torch.searchsorted(ordered, ordered.new_tensor([0.0, near])).tolist()
    edges = ordered.new_tensor([-near, 0.0])
    from_near, positive = torch.searchsorted(ordered, edges, right=True).tolist()
    positive = n - positive
    mean, variance, skewness, kurtosis = _moments(ordered)
    ends = [-ordered[negative - 1].item()] if negative else []
    ends += [ordered[n - positive].item()] if positive else []
    return {
        "zero_share": (n - negative - positive) / n,
        "near_zero": max(to_near - from_near, 0) / n,
        "mean": mean,
        "std": variance**0.5,
        "skewness": skewness,
        "kurtosis": kurtosis,
        "min": ordered[0].item(),
        "max": ordered[-1].item(),
        "smallest": min(ends, default=0.0),
        "l1": (ordered[n - positive :].sum() - ordered[:negative].sum()).item(),
        "l2": (n * (variance + mean * mean)) ** 0.5,
        "dense_std": dense_std,
    }


def _moments(ordered: Tensor) -> tuple[float, float, float, float]:
    """Mean, variance, skewness and kurtosis of sorted values.

    Values are centred first to avoid cancellation, and scaled by the largest deviation so that
    fourth powers of weights from 1e-12 to 1e12 stay within the float32 range."""
    mean = ordered.mean().item()
    if ordered[0] == ordered[-1]:
        return mean, 0.0, 0.0, 0.0
    centred = ordered - mean
    unit = max(-centred[0].item(), centred[-1].item())
    squares = centred.div_(unit).square()
    variance = squares.mean().item()
    third = centred.mul_(squares).mean().item()
    fourth = squares.square_().mean().item()
    return mean, unit * unit * variance, third / variance**1.5, fourth / variance**2


def histogram(ordered: Tensor, edge: float) -> tuple[Tensor, int, int, int]:
    """Counts in `BINS` equal bins from -edge to edge, and the count of values outside.

    Bins include their left edge, the last bin both edges. Exact zeros are in no bin. `ordered`:
    sorted values [n]. Returns counts int64 [BINS], zeros, below, above; together n."""
    edges = torch.linspace(-edge, edge, BINS + 1, dtype=ordered.dtype, device=ordered.device)
    edges[BINS // 2] = 0.0
    places = torch.searchsorted(ordered, edges)
    places[-1] = torch.searchsorted(ordered, edges[-1], right=True)
    zeros = int(torch.searchsorted(ordered, edges[BINS // 2], right=True) - places[BINS // 2])
    counts = places.diff().cpu()
    counts[BINS // 2] -= zeros
    return counts, zeros, int(places[0]), int(len(ordered) - places[-1])
