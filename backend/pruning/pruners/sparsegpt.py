"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): pruning by columns with compensation.

score_ij = (W_ij / U_jj)^2         H^-1 = U^T U, U upper triangular, H damped
w_l <- w_l - w_j U_jl / U_jj       for every dropped w_j and all l > j"""

from collections.abc import Iterator

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.pruning.masks import keep_count, top_of_planes, top_overall
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner

BLOCK = 128  # columns with a common mask, after which the columns right of them are updated
STRIP = 16  # columns to prune before the remaining columns of their block are updated


@pruner("sparsegpt", needs=StatisticsLevel.GRAM, products=1.0)
def sparsegpt(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Prune column by column, with later columns compensating for dropped weights.

    A percentage is dropped from each block of 128 columns, over all rows."""
    U = inputs.inverse_root(damping)
    # With columns as rows, each step touches contiguous memory.
    V = W.masked_fill(inputs.energy == 0, 0.0).T.contiguous()  # [in, out]
    for a, b in _column_ranges(len(V), BLOCK, pattern):
        E = _prune_columns(V[a:b], U[a:b, a:b], pattern)
        V[b:].addmm_(U[a:b, b:].T, E, alpha=-1)
    return V.T.contiguous()


def _column_ranges(columns: int, max_size: int, pattern: Pattern) -> Iterator[tuple[int, int]]:
    """Ranges of up to `max_size` columns that split no group; a wider group is one range."""
    size = max_size
    if pattern.structured:
        size = max(max_size - max_size % pattern.group, pattern.group)
    return ((a, min(a + size, columns)) for a in range(0, columns, size))


def _prune_columns(V: Tensor, U: Tensor, pattern: Pattern) -> Tensor:
    """Prune the columns V [width, out] one by one, in place.

    Returns:
        errors E [width, out]: w / U_jj for dropped weights, 0 for kept weights.
    """
    scale = U.diagonal().reciprocal().unsqueeze(1)
    # The scale of dropped weights, 0 for kept weights.
    dropped_scale, E = torch.empty_like(V), torch.empty_like(V)
    if not pattern.structured:
        keep = top_overall((V * scale).abs_(), keep_count(V.numel(), pattern.drop))
        torch.sub(scale, scale * keep, out=dropped_scale)
    for a, b in _column_ranges(len(V), STRIP, pattern):
        for j in range(a, b):
            if pattern.structured and j % pattern.group == 0:
                group = slice(j, j + pattern.group)
                keep = top_of_planes((V[group] * scale[group]).abs_(), pattern.keep)
                torch.sub(scale[group], scale[group] * keep, out=dropped_scale[group])
            torch.mul(V[j], dropped_scale[j], out=E[j])
            V[j + 1 : b].addr_(U[j, j + 1 : b], E[j], alpha=-1)
        V[b:].addmm_(U[a:b, b:].T, E[a:b], alpha=-1)
    V.mul_((dropped_scale == 0).to(V.dtype)).add_(0.0)
    return E
