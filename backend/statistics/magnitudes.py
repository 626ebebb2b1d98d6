"""Distribution of weight magnitudes, computed from a sorted copy of the weights.

    cut-off(p) = the magnitude below which the fraction p of the weights lies

Magnitude pruning of a whole tensor to sparsity p removes the weights below cut-off(p)."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from backend.statistics.channels import DROPPED_BITS, short
from backend.statistics.names import magnitude_edges

EXACT = 2**17  # values that are sorted as they are
PATTERNS = 2 ** (32 - DROPPED_BITS)  # of a number that has been made short


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
