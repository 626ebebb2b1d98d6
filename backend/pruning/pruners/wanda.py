"""Wanda pruning (Sun et al. 2023, arXiv 2306.11695) by weight times input norm.

score_ij = |W_ij| sqrt(H_jj)        compared within each output row, or within each group for n:m"""

from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.pruning.masks import keep_mask, masked
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner


@pruner("wanda", needs=StatisticsLevel.ENERGY)
def wanda(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Keep the weights with the highest score in their row or group; weights are not updated."""
    return masked(W, keep_mask(W.abs() * inputs.energy.sqrt(), pattern))
