"""Distribution of the weights of one tensor at one stage, computed from one sorted copy of them.

    cut-off(p) = the magnitude below which the fraction p of the weights lies

Magnitude pruning of a whole tensor to sparsity p removes the weights below cut-off(p).

    skewness = E[z^3],  kurtosis = E[z^4] (3 for a normal distribution),  z = (w - mean) / std

Statistics include exact zeros; the histogram excludes them. Its edges come from the dense tensor
(`scale_of`), so that the stages of a tensor can be overlaid."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from backend.statistics.profiles import DROPPED_BITS, short
from backend.statistics.tensors import BINS, QUANTILES, histogram_edge, magnitude_edges

EXACT = 2**17  # values that are sorted as they are
PATTERNS = 2 ** (32 - DROPPED_BITS)  # of a number that has been made short
NEAR_ZERO = 0.05  # in standard deviations of the dense tensor


def ascending(values: Tensor) -> Tensor:
    """`values` [..., n] sorted along the last dimension, smallest first. numpy is some twenty times
    faster than torch for float32 on a CPU."""
    values = values.detach()
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def ordered_values(weight: Tensor) -> Tensor:
    """The values of a weight tensor as its statistics take them (`comparable`), sorted, float32
    [n]. The many of a large one are counted, which takes a tenth of the time of sorting them."""
    values = comparable(weight)
    if not _is_short(values):
        return ascending(values)
    bits = torch.from_numpy(values.numpy().view(np.int32) >> DROPPED_BITS)
    counts = torch.bincount(bits.add_(PATTERNS // 2), minlength=PATTERNS)
    return torch.from_numpy(np.repeat(_patterns(), _negative_first(counts.numpy())))


def comparable(weight: Tensor) -> Tensor:
    """The values of a weight tensor, float32 [n]; those of a large one on a CPU to a relative
    precision of 0.025 %, of which numbers of 16 bits lose nothing."""
    values = weight.detach().float().flatten()
    return torch.from_numpy(short(values.numpy())) if _is_short(values) else values


def _is_short(values: Tensor) -> bool:
    return values.device.type == "cpu" and len(values) > EXACT


@lru_cache
def _patterns() -> np.ndarray:
    """All short numbers, sorted: float32."""
    bits = np.arange(-PATTERNS // 2, PATTERNS // 2, dtype=np.int32) << DROPPED_BITS
    return _negative_first(bits.view(np.float32))


def _negative_first(by_bits: np.ndarray) -> np.ndarray:
    """In the order of the numbers, what is in that of their bits as integers: the larger those of a
    negative number, the smaller it is."""
    negative, positive = np.split(by_bits, 2)
    return np.concatenate([negative[::-1], positive])


def smallest(values: Tensor, place: int) -> Tensor:
    """The value [...] of rank `place` (0: smallest) along the last dimension of `values`."""
    if values.device.type == "cpu":
        parted = np.partition(values.detach().numpy(), place, axis=-1)
        return torch.as_tensor(parted[..., place])
    return ascending(values)[..., place]


def magnitude_counts(ordered: Tensor, std: float) -> Tensor:
    """Count of weights in each bin of the |w| axis, without exact zeros. `ordered`: sorted weights
    [n]. `std`: of the dense tensor; the unit of the axis. Returns int64 [144] on the CPU; the sum
    plus the number of exact zeros is n."""
    inner = torch.from_numpy(magnitude_edges(std)[1:-1]).to(ordered)
    negative = torch.searchsorted(ordered, ordered.new_zeros(()))
    positive = torch.searchsorted(ordered, ordered.new_zeros(()), right=True)
    end = torch.tensor([len(ordered)], device=ordered.device)
    above = torch.cat([positive[None], torch.searchsorted(ordered, inner), end])
    below = torch.cat([negative[None], torch.searchsorted(ordered, -inner, right=True)])
    return (above.diff() - torch.cat([below, below.new_zeros(1)]).diff()).cpu()


def cutoff(ordered: Tensor, share: float) -> float:
    """The largest magnitude among the fraction `share` of smallest weights; 0 if there are none.
    `ordered`: sorted weights [n]."""
    # the k-th smallest |w|, by bisection over the negative and the positive weights
    if not (k := round(share * len(ordered))):
        return 0.0
    split = int(torch.searchsorted(ordered, ordered.new_zeros(())))
    n = len(ordered)
    low, high = max(0, k - (n - split)), min(k, split)  # number of negative weights among the k
    while low < high:
        taken = (low + high) // 2
        # Take another negative weight while it is smaller than the last positive one taken.
        if -ordered[split - 1 - taken] < ordered[split + k - taken - 1]:
            low = taken + 1
        else:
            high = taken
    last = [-ordered[split - low]] if low else []
    last += [ordered[split + k - low - 1]] if k > low else []
    return max(x.item() for x in last)


def scale_of(ordered: Tensor) -> tuple[float, float]:
    """The scale of all stages of a tensor by its dense weights, sorted [n]: where the histogram
    ends, 1.5 times their larger absolute 0.1 % quantile, and their standard deviation."""
    low, high = quantiles(ordered, (QUANTILES[0], QUANTILES[-1]))
    return histogram_edge(low, high), _moments(ordered)[1] ** 0.5


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
