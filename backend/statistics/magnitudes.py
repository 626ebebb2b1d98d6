"""Distribution of weight magnitudes, computed from a sorted copy of the weights.

    cut-off(p) = the magnitude below which the fraction p of the weights lies

Magnitude pruning of a whole tensor to sparsity p removes the weights below cut-off(p)."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from backend.statistics.names import magnitude_edges

PATTERNS = 2**16  # of a number of 16 bits
HALVES = (torch.float16, torch.bfloat16)


def ascending(values: Tensor) -> Tensor:
    """`values` [..., n] sorted along the last dimension, smallest first. numpy is some twenty times
    faster than torch for float32 on a CPU, and numbers of 16 bits are only counted."""
    values = values.detach()
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    if values.dim() == 1 and len(values) > PATTERNS and values.dtype == torch.float32:
        for half in map(values.to, HALVES):
            if torch.equal(half.float(), values):  # no NaN, either
                return _counted(half)
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def _counted(half: Tensor) -> Tensor:
    """Numbers of 16 bits [n] sorted, in float32."""
    counts = torch.bincount(half.view(torch.int16).int().add_(PATTERNS // 2), minlength=PATTERNS)
    return _patterns(half.dtype).repeat_interleave(_negative_first(counts), output_size=len(half))


@lru_cache
def _patterns(dtype: torch.dtype) -> Tensor:
    """All numbers of a dtype of 16 bits, sorted."""
    bits = torch.arange(-PATTERNS // 2, PATTERNS // 2, dtype=torch.int16)
    return _negative_first(bits.view(dtype).float())


def _negative_first(by_bits: Tensor) -> Tensor:
    """In the order of the numbers, what is in that of their bits as integers: the larger those of a
    negative number, the smaller it is."""
    negative, positive = by_bits.chunk(2)
    return torch.cat([negative.flip(0), positive])


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
