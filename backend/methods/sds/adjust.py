"""Step 3b: iterative hard thresholding towards the dense layer's outputs.

    minimise tr(D H D^T), D = W - W_dense,   with W as sparse as it came

A gradient step, then only the largest weights stay: n of each group, or as many as each row had.
With the soft mask they are chosen anew at every step, so a weight pruned earlier can return. With
the fixed mask the steps approach the least-squares optimum on the weights that are there; after
the first pruning that is the control which SDS has to beat.

Hard thresholding promises no descent. Each row therefore ends as the best it ever was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.methods.sds.descent import proximal_descent
from backend.methods.sds.masks import masked, top_per_group, top_per_row
from backend.methods.sds.pattern import Pattern


def adjust(
    start: Tensor, dense: Tensor, H: Tensor, pattern: Pattern, steps: int, soft: bool
) -> Tensor:
    """The sparse weights `start` [out, in] after `steps` steps towards `dense` under H [in, in].

    No row is farther from the dense outputs than before, and no row has more non-zeros.

    Args:
        soft: whether the mask is chosen anew at every step.
    """
    fixed = start != 0
    of_row = fixed.sum(1)

    def threshold(point: Tensor, step: float) -> Tensor:
        if not soft:
            keep = fixed
        elif pattern.structured:
            keep = top_per_group(point.abs(), pattern.keep, pattern.group)
        else:
            keep = top_per_row(point.abs(), of_row)
        return masked(point, keep)

    path = proximal_descent(start, dense, H, steps, threshold)
    best, lowest = next(path)
    for W, error in path:
        best = torch.where((error < lowest).unsqueeze(1), W, best)
        lowest = torch.minimum(error, lowest)
    return best
