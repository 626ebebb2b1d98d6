"""One-shot pruners behind one contract: `prune(W, inputs, pattern, damping) -> W_sparse`.

    magnitude    score = |W|
    Wanda        score = |W_ij| sqrt(H_jj)                       (Sun et al. 2023)
    SparseGPT    score = (W_ij / U_jj)^2, weights that stay make up for those that go
                 H^-1 = U^T U, U upper triangular                (Frantar & Alistarh 2023)

Adding one is a function with `@pruner("name", needs=...)` and its name in `SDSConfig.base`.
Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.methods.gram import Inputs, Need, cholesky
from backend.methods.sds.masks import keep_mask, kept_of, masked, top_overall, top_per_group
from backend.methods.sds.pattern import Pattern

Prune = Callable[[Tensor, Inputs, Pattern, float], Tensor]
BLOCK = 128  # columns SparseGPT treats before it updates the rest


@dataclass(frozen=True)
class Pruner:
    """A pruner and what it must know of a layer's inputs."""

    prune: Prune
    needs: Need


PRUNERS: dict[str, Pruner] = {}


def pruner(name: str, needs: Need) -> Callable[[Prune], Prune]:
    """Registers a pruner.

    Its arguments are W [out, in], the layer's inputs, the pattern, and the damping (share of the
    mean input energy); it raises `NotPositiveDefinite` when more damping would help.
    """

    def register(prune: Prune) -> Prune:
        PRUNERS[name] = Pruner(prune, needs)
        return prune

    return register


@pruner("magnitude", needs=Need.NOTHING)
def magnitude(W: Tensor, inputs: Inputs, pattern: Pattern, damping: float) -> Tensor:
    """Keeps the largest weights: of each group for n:m, else of the whole layer."""
    scores = W.abs()
    if pattern.structured:
        return masked(W, keep_mask(scores, pattern))
    return masked(W, top_overall(scores, kept_of(W.numel(), pattern.drop)))


@pruner("wanda", needs=Need.ENERGY)
def wanda(W: Tensor, inputs: Inputs, pattern: Pattern, damping: float) -> Tensor:
    """Keeps the weights that carry most signal in their row or group; changes no weight."""
    return masked(W, keep_mask(W.abs() * inputs.energy.sqrt(), pattern))


@pruner("sparsegpt", needs=Need.GRAM)
def sparsegpt(W: Tensor, inputs: Inputs, pattern: Pattern, damping: float) -> Tensor:
    """Goes through the columns; what a dropped weight did is spread over the columns after it.

    Unstructured, the share is dropped of each block of 128 columns over all rows.
    """
    W = W.masked_fill(inputs.energy == 0, 0.0)
    U = _inverse_root(inputs.gram, damping)
    columns = W.shape[1]
    width = BLOCK - BLOCK % pattern.group if 0 < pattern.group <= BLOCK else pattern.group or BLOCK
    for a in range(0, columns, width):
        b = min(a + width, columns)
        W[:, a:b], E = _prune_columns(W[:, a:b], U[a:b, a:b], pattern)
        W[:, b:] -= E @ U[a:b, b:]
    return W


def _inverse_root(H: Tensor, damping: float) -> Tensor:
    """U [in, in], upper triangular with U^T U = (H + damping mean(diag H) I)^-1.

    A dead input (zero energy) gets unit energy; its column is zero anyway.
    """
    H = H.clone()
    energy = H.diagonal()
    energy[energy == 0] = 1.0
    energy += damping * energy.mean()
    return cholesky(torch.cholesky_inverse(cholesky(H))).T


def _prune_columns(W: Tensor, U: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """W [out, width] pruned column by column, and the errors (w - w') / U_jj [out, width]."""
    scale = U.diagonal()
    # Columns as rows: each step then touches neighbouring memory.
    V, E = W.T.clone(), torch.empty_like(W.T)  # [width, out]
    if not pattern.structured:
        kept = kept_of(W.numel(), pattern.drop)
        keep = top_overall((W / scale).square(), kept).T
    for j in range(len(V)):
        if pattern.structured and j % pattern.group == 0:
            group = slice(j, j + pattern.group)
            scores = (V[group].T / scale[group]).square()
            keep = torch.empty_like(V, dtype=torch.bool) if j == 0 else keep
            keep[group] = top_per_group(scores, pattern.keep, pattern.group).T
        w = V[j].clone()
        E[j] = w.masked_fill(keep[j], 0.0) / scale[j]
        V[j + 1 :] -= torch.outer(U[j, j + 1 :], E[j])
        V[j] = masked(w, keep[j])
    return V.T, E.T
