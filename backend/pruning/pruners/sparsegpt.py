"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): prune column by column, compensating.

score_ij = (W_ij / U_jj)^2         H^-1 = U^T U, U upper triangular, H damped
w_l <- w_l - w_j U_jl / U_jj       for every dropped w_j and all l > j"""

from collections.abc import Iterator

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.pruning.masks import keep_count, top_of_planes, top_overall
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner

BLOCK = 128  # columns whose mask is chosen together, before the rest is updated
STRIP = 16  # columns pruned before the rest of their block is updated


@pruner("sparsegpt", needs=StatisticsLevel.GRAM, products=1.0)
def sparsegpt(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Prune column by column; later columns compensate for the weights that were dropped.

    For a percentage, the share is dropped from each block of 128 columns, over all rows."""
    U = inputs.inverse_root(damping)
    # Columns as rows: each step then touches neighboring memory.
    V = W.masked_fill(inputs.energy == 0, 0.0).T.contiguous()  # [in, out]
    for a, b in _pieces(len(V), BLOCK, pattern):
        E = _prune_columns(V[a:b], U[a:b, a:b], pattern)
        V[b:].addmm_(U[a:b, b:].T, E, alpha=-1)
    return V.T.contiguous()


def _pieces(columns: int, most: int, pattern: Pattern) -> Iterator[tuple[int, int]]:
    """Ranges of up to `most` columns that split no group; a wider group is one range."""
    size = max(most - most % pattern.group, pattern.group) if pattern.structured else most
    return ((a, min(a + size, columns)) for a in range(0, columns, size))


def _prune_columns(V: Tensor, U: Tensor, pattern: Pattern) -> Tensor:
    """Prune the columns V [width, out] one by one, in place. Returns the errors E [width, out]: w /
    U_jj where w was dropped, else 0."""
    scale = U.diagonal().reciprocal().unsqueeze(1)
    lost, E = torch.empty_like(V), torch.empty_like(V)  # lost: scale where dropped, else 0
    if not pattern.structured:
        keep = top_overall((V * scale).abs_(), keep_count(V.numel(), pattern.drop))
        torch.sub(scale, scale * keep, out=lost)
    for a, b in _pieces(len(V), STRIP, pattern):
        for j in range(a, b):
            if pattern.structured and j % pattern.group == 0:
                group = slice(j, j + pattern.group)
                keep = top_of_planes((V[group] * scale[group]).abs_(), pattern.keep)
                torch.sub(scale[group], scale[group] * keep, out=lost[group])
            torch.mul(V[j], lost[j], out=E[j])
            V[j + 1 : b].addr_(U[j, j + 1 : b], E[j], alpha=-1)
        V[b:].addmm_(U[a:b, b:].T, E[a:b], alpha=-1)
    V.mul_((lost == 0).to(V.dtype)).add_(0.0)
    return E
