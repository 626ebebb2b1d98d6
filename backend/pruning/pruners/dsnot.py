"""DSnoT (Zhang et al., ICLR 2024, arXiv 2310.08915): Wanda's mask, improved by swapping weights.

No weight changes its value. With the mean m_j and the variance v_j of each input, the mean error of
an output comes from its dropped weights,

    e = sum over dropped j of w_j m_j

and every swap reduces |e|:

    restore     argmax over dropped j of  sign(e) w_j m_j / v_j,       e <- e - w_j m_j
    drop        argmin over kept j with sign(e) w_j m_j < 0            e <- e + w_j m_j
                of  |w_j| sqrt(H_jj)

With n:m both weights belong to the same group. A swap that would not reduce |e| is rejected, and
the next candidate is tried (our choice; the paper ends a row when |e| is below a threshold or e
changes its sign)."""

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.pruning.masks import keep_mask, masked
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner

MAX_SWAPS = 50  # maximum swaps per row
# Variance relative to the mean over inputs, below which an input counts as constant.
MIN_VARIANCE = 1e-8


@pruner("dsnot", needs=StatisticsLevel.ENERGY)
def dsnot(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Swap kept and dropped weights while the mean error of an output falls."""
    score = W.abs() * inputs.energy.sqrt()
    mask = keep_mask(score, pattern) > 0
    variance = inputs.energy - inputs.mean.square()
    floor = MIN_VARIANCE * variance.mean()  # at most 0 if all inputs are constant
    variance = variance.clamp(min=floor) if floor > 0 else torch.ones_like(variance)
    contribution = W * inputs.mean  # to the mean of the output
    error = (contribution * ~mask).sum(1)
    rejected = torch.zeros_like(mask)  # dropped weights that no swap can restore
    rows = torch.arange(len(W), device=W.device)
    groups = torch.arange(W.shape[1], device=W.device) // max(1, pattern.group)
    for _ in range(MAX_SWAPS):
        gain = error.sign()[:, None] * contribution / variance
        gain.masked_fill_(mask | rejected, -torch.inf)
        restored = gain.argmax(1)
        error_after_restoring = error - contribution[rows, restored]
        droppable = mask & (error_after_restoring.sign()[:, None] * contribution < 0)
        if pattern.structured:
            droppable &= groups == groups[restored].unsqueeze(1)
        dropped = score.masked_fill(~droppable, torch.inf).argmin(1)
        new_error = error_after_restoring + contribution[rows, dropped]
        improves = droppable.any(1) & (gain[rows, restored] > 0) & (new_error.abs() < error.abs())
        mask[rows[improves], restored[improves]] = True
        mask[rows[improves], dropped[improves]] = False
        rejected[rows[~improves], restored[~improves]] = True
        error = torch.where(improves, new_error, error)
    return masked(W, mask.to(W.dtype))
