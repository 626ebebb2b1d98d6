"""Distribution of weight magnitudes, computed from a sorted copy of the weights.

    cut-off(p) = the magnitude below which the share p of the weights lies

What plain magnitude pruning of a whole tensor to sparsity p would drop lies below cut-off(p).
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.statistics.names import magnitude_edges


def magnitude_counts(ordered: Tensor, std: float) -> Tensor:
    """Count of weights in each bin of the |w| axis; exact zeros are in none.

    Args:
        ordered: sorted weights [n].
        std: of the dense tensor; gives the axis its unit.

    Returns:
        int64 [144] on the CPU; with the exact zeros they sum to n.
    """
    inner = torch.from_numpy(magnitude_edges(std)[1:-1]).to(ordered)
    negative = torch.searchsorted(ordered, ordered.new_zeros(()))
    positive = torch.searchsorted(ordered, ordered.new_zeros(()), right=True)
    above = torch.cat([positive[None], torch.searchsorted(ordered, inner), _end(ordered)])
    below = torch.cat([negative[None], torch.searchsorted(ordered, -inner, right=True)])
    return (above.diff() - torch.cat([below, below.new_zeros(1)]).diff()).cpu()


def _end(ordered: Tensor) -> Tensor:
    return torch.tensor([len(ordered)], device=ordered.device)


def cutoff(ordered: Tensor, share: float) -> float:
    """The magnitude of the largest of the `share` smallest weights; 0 when there are none.

    Args:
        ordered: sorted weights [n].
    """
    rank = round(share * len(ordered))
    return _kth_magnitude(ordered, rank) if rank else 0.0


def _kth_magnitude(ordered: Tensor, k: int) -> float:
    """The k-th smallest |w|, k from 1: by bisection in the sorted negative and positive halves."""
    split = int(torch.searchsorted(ordered, ordered.new_zeros(())))
    n = len(ordered)
    low, high = max(0, k - (n - split)), min(k, split)  # how many of the k are negative
    while low < high:
        taken = (low + high) // 2
        # One more negative weight belongs in while it is smaller than the last positive taken.
        if -ordered[split - 1 - taken] < ordered[split + k - taken - 1]:
            low = taken + 1
        else:
            high = taken
    last = [-ordered[split - low]] if low else []
    last += [ordered[split + k - low - 1]] if k > low else []
    return max(x.item() for x in last)
