"""One-shot pruners behind one contract: `prune(W, inputs, pattern, damping) -> W_sparse`.

    magnitude    score = |W|
    Wanda        score = |W_ij| sqrt(H_jj)                       (Sun et al. 2023)
    SparseGPT    score = (W_ij / U_jj)^2, weights that stay make up for those that go
                 H^-1 = U^T U, U upper triangular                (Frantar & Alistarh 2023)

Adding one is a function with `@pruner("name", needs=...)` and its name in `SDSConfig.base`.
Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.methods.calibration import InputStatistics, StatisticsLevel
from backend.methods.sds.masks import keep_count, keep_mask, masked, top_of_planes, top_overall
from backend.methods.sds.pattern import Pattern

Prune = Callable[[Tensor, InputStatistics, Pattern, float], Tensor]
BLOCK = 128  # columns SparseGPT chooses from, and treats before it updates the rest
STRIP = 16  # columns of a block that are treated before the rest of the block is updated


@dataclass(frozen=True)
class Pruner:
    """A pruner and what it must know of a layer's inputs."""

    prune: Prune
    needs: StatisticsLevel


PRUNERS: dict[str, Pruner] = {}


def pruner(name: str, needs: StatisticsLevel) -> Callable[[Prune], Prune]:
    """Registers a pruner.

    Its arguments are W [out, in], the layer's inputs, the pattern, and the damping (share of the
    mean input energy); it raises `NotPositiveDefinite` when more damping would help.
    """

    def register(prune: Prune) -> Prune:
        PRUNERS[name] = Pruner(prune, needs)
        return prune

    return register


@pruner("magnitude", needs=StatisticsLevel.NOTHING)
def magnitude(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Keeps the largest weights: of each group for n:m, else of the whole layer."""
    scores = W.abs()
    if pattern.structured:
        return masked(W, keep_mask(scores, pattern))
    return masked(W, top_overall(scores, keep_count(W.numel(), pattern.drop)))


@pruner("wanda", needs=StatisticsLevel.ENERGY)
def wanda(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Keeps the weights that carry most signal in their row or group; changes no weight."""
    return masked(W, keep_mask(W.abs() * inputs.energy.sqrt(), pattern))


@pruner("sparsegpt", needs=StatisticsLevel.GRAM)
def sparsegpt(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Goes through the columns; what a dropped weight did is spread over the columns after it.

    Unstructured, the share is dropped of each block of 128 columns over all rows.
    """
    U = inputs.inverse_root(damping)
    # Columns as rows: each step then touches neighbouring memory.
    V = W.masked_fill(inputs.energy == 0, 0.0).T.contiguous()  # [in, out]
    for a, b in _pieces(len(V), BLOCK, pattern):
        E = _prune_columns(V[a:b], U[a:b, a:b], pattern)
        V[b:].addmm_(U[a:b, b:].T, E, alpha=-1)
    return V.T.contiguous()


def _pieces(columns: int, most: int, pattern: Pattern) -> Iterator[tuple[int, int]]:
    """Ranges of up to `most` columns that split no group; a group that is wider is one range."""
    size = max(most - most % pattern.group, pattern.group) if pattern.structured else most
    return ((a, min(a + size, columns)) for a in range(0, columns, size))


def _prune_columns(V: Tensor, U: Tensor, pattern: Pattern) -> Tensor:
    """Prunes the columns V [width, out] one by one, in place.

    Returns:
        The errors E [width, out]: w / U_jj where w was dropped, else 0.
    """
    scale = U.diagonal().reciprocal().unsqueeze(1)
    lost, E = torch.empty_like(V), torch.empty_like(V)  # lost: the scale of what is dropped, or 0
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
