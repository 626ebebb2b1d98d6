"""DSnoT (Zhang et al., ICLR 2024, arXiv 2310.08915): Wanda's mask, improved by swaps of weights.

No weight changes its value. With the mean m_j and the variance v_j of each input, the mean error of
an output is that of the weights it has lost,

    e = sum over dropped j of w_j m_j

and every swap makes its size smaller:

    bring back  argmax over dropped j of  sign(e) w_j m_j / v_j,       e <- e - w_j m_j
    drop        argmin over kept j with sign(e) w_j m_j < 0            e <- e + w_j m_j
                of  |w_j| sqrt(H_jj)

With n:m both are of one group. A swap that would not make |e| smaller is not made, and the next
candidate is tried (ours; the paper ends a row below a threshold, or when e changes its sign)."""

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.pruning.masks import keep_mask, masked
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner

MAX_SWAPS = 50  # of a row, at most
MIN_VARIANCE = 1e-8  # relative to the mean over inputs; below it an input counts as constant


@pruner("dsnot", needs=StatisticsLevel.ENERGY)
def dsnot(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Swap kept and dropped weights while the mean error of an output falls."""
    score = W.abs() * inputs.energy.sqrt()
    kept = keep_mask(score, pattern) > 0
    variance = inputs.energy - inputs.mean.square()
    floor = MIN_VARIANCE * variance.mean()  # 0 or less where all inputs are constant
    variance = variance.clamp(min=floor) if floor > 0 else torch.ones_like(variance)
    share = W * inputs.mean  # of the mean of each output
    error = (share * ~kept).sum(1)
    barred = torch.zeros_like(kept)  # what cannot come back, as nothing fitting could go
    place = torch.arange(len(W), device=W.device)
    groups = torch.arange(W.shape[1], device=W.device) // max(1, pattern.group)
    for _ in range(MAX_SWAPS):
        pull = (error.sign()[:, None] * share / variance).masked_fill(kept | barred, -torch.inf)
        back = pull.argmax(1)
        without = error - share[place, back]
        fits = kept & (without.sign()[:, None] * share < 0)
        if pattern.structured:
            fits &= groups == groups[back].unsqueeze(1)
        gone = score.masked_fill(~fits, torch.inf).argmin(1)
        after = without + share[place, gone]
        better = fits.any(1) & (pull[place, back] > 0) & (after.abs() < error.abs())
        kept[place[better], back[better]], kept[place[better], gone[better]] = True, False
        barred[place[~better], back[~better]] = True
        error = torch.where(better, after, error)
    return masked(W, kept.to(W.dtype))
