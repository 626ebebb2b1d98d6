"""Masks of any sparsity from stored ranks, one byte per weight.

A percentage p drops the d = floor(p n) lowest-ranking of n weights, in a row or in the layer. Among
equal scores the later weight ranks lower, as in `backend.pruning.masks`. The table has the number
of edges

    e_i = floor(i n / 200),   i = 1 .. 199

that the rank of each weight reaches. At multiples of half a percent, a mask is a single comparison.
Otherwise the scores of the weights between two edges, one in 200, are compared, so that masks are
exact.

For n:m, the table has the number of weights in the group that rank higher; n:m keeps weights for
which this number is below n."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.pruning.masks import higher_counts, keep_count, top_per_row
from backend.pruning.pattern import Pattern

STEPS = 200  # intervals of sparsity
LARGEST_GROUP = 127  # largest group whose ranks fit in a signed byte


@dataclass(frozen=True)
class WeightScores:
    """Scores of weights: |w| compared within the layer, or Wanda's scores within each row.

    Attributes:
        W: weights [out, in].
        root: square root of the energy of the inputs [in]; None for |w|.
    """

    W: Tensor
    root: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape [rows, n] of the scores; ranks are within a row."""
        return (1, self.W.numel()) if self.root is None else (len(self.W), self.W.shape[1])

    def all(self) -> Tensor:
        """Compute all scores [out, in], float32."""
        scores = self.W.float().abs()
        return scores if self.root is None else scores.mul_(self.root)

    def at(self, indices: Tensor) -> Tensor:
        """Compute the scores [rows, k] at `indices` [rows, k] within each row."""
        scores = self.W.reshape(self.shape).gather(1, indices).float().abs()
        return scores if self.root is None else scores.mul_(self.root[indices])


def rank_table(scores: WeightScores, group: int) -> Tensor:
    """Compute the table of ranks [out, in], one byte each.

    Args:
        scores: scores of the weights.
        group: m of n:m, or 0 for percentages.
    """
    if group:
        planes = scores.all().reshape(-1, group).T.contiguous()
        return higher_counts(planes).T.reshape(scores.W.shape).contiguous()
    rows, n = scores.shape
    # Bits of non-negative floats are in the order of the values. The lower half of each key puts
    # the later of two equal scores first.
    bits = scores.all().reshape(rows, n).cpu().numpy().view(np.int32).astype(np.int64)
    order = np.sort(bits << 32 | np.arange(n)[::-1], axis=1) & (2**32 - 1)
    steps = np.searchsorted(_edges(n), np.arange(n), side="right").astype(np.uint8)
    table = np.empty((rows, n), np.uint8)
    np.put_along_axis(table, n - 1 - order, np.broadcast_to(steps, (rows, n)), 1)
    return torch.from_numpy(table).view(scores.W.shape).to(scores.W.device)


def rank_mask(table: Tensor, scores: WeightScores, pattern: Pattern) -> Tensor:
    """Mask of the weights that a pattern keeps, bool [out, in].

    Args:
        table: result of `rank_table` for the group of the pattern.
        scores: scores of the weights.
        pattern: sparsity pattern.
    """
    if pattern.structured:
        return table < pattern.keep
    rows, n = scores.shape
    edges, dropped = _edges(n), n - keep_count(n, pattern.drop)
    step = bisect_right(edges, dropped)  # step of the lowest rank to keep
    if (edges[step - 1] if step else 0) == dropped:
        return table >= step
    end = edges[step] if step < len(edges) else n
    indices = (table.view(rows, n) == step).nonzero()[:, 1].view(rows, -1)
    mask = top_per_row(scores.at(indices), end - dropped).bool()
    return (table > step).view(rows, n).scatter_(1, indices, mask).view(table.shape)


def _edges(n: int) -> list[int]:
    """Ranks at which the steps of the table begin."""
    return [n - keep_count(n, step / STEPS) for step in range(1, STEPS)]
