"""A pruner in one file: keeps the weights with the lowest column index."""

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.pruning.masks import keep_mask, masked
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner


@pruner("leftmost", needs=StatisticsLevel.NOTHING)
def leftmost(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Keep the first weights of every row or group."""
    scores = torch.arange(W.shape[1], 0, -1, dtype=W.dtype).expand_as(W)
    return masked(W, keep_mask(scores.contiguous(), pattern))
