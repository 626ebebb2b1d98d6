"""Magnitude pruning, which keeps the weights with the largest |W|."""

from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.pruning.masks import keep_count, keep_mask, masked, top_overall
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner


@pruner("magnitude", needs=StatisticsLevel.NOTHING)
def magnitude(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Keep the largest weights of each group (n:m) or of the layer (percentage)."""
    scores = W.abs()
    if pattern.structured:
        return masked(W, keep_mask(scores, pattern))
    return masked(W, top_overall(scores, keep_count(W.numel(), pattern.drop)))
