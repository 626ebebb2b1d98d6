"""Masks of any sparsity from stored ranks, a byte a weight.

A percentage p drops the d = floor(p n) weights of n that rank lowest, in a row or in the layer;
among equal scores the later one ranks lower, as in `backend.pruning.masks`. Stored is how many of
the edges

    e_i = floor(i n / 200),   i = 1 .. 199

the rank of a weight reaches: at half a percent and its multiples a mask is one comparison. Between
two edges the weights there, one in 200, are compared by their scores, so that masks are exact.

For n:m, stored is by how many of its group a weight is higher_counts: n:m keeps those below n."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.pruning.masks import higher_counts, keep_count, top_per_row
from backend.pruning.pattern import Pattern

STEPS = 200
LARGEST_GROUP = 127  # whose ranks a signed byte holds


@dataclass(frozen=True)
class WeightScores:
    """Scores of weights `W` [out, in]: |w|, compared in the whole layer, or times the `root` of the
    energy of their inputs [in], compared in each row."""

    W: Tensor
    root: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of what is compared: [rows, n]."""
        return (1, self.W.numel()) if self.root is None else (len(self.W), self.W.shape[1])

    def all(self) -> Tensor:
        """[out, in], float32."""
        scores = self.W.float().abs()
        return scores if self.root is None else scores.mul_(self.root)

    def at(self, places: Tensor) -> Tensor:
        """Of some weights of each row [rows, k], by their places in it."""
        scores = self.W.reshape(self.shape).gather(1, places).float().abs()
        return scores if self.root is None else scores.mul_(self.root[places])


def rank_table(scores: WeightScores, group: int) -> Tensor:
    """The ranks [out, in] to store, one byte each; `group`: m of n:m, 0: of percentages."""
    if group:
        planes = scores.all().reshape(-1, group).T.contiguous()
        return higher_counts(planes).T.reshape(scores.W.shape).contiguous()
    rows, n = scores.shape
    # not negative, and so ordered as their bits are; the later of two equal ones comes first
    bits = scores.all().reshape(rows, n).cpu().numpy().view(np.int32).astype(np.int64)
    order = np.sort(bits << 32 | np.arange(n)[::-1], axis=1) & (2**32 - 1)
    steps = np.searchsorted(_edges(n), np.arange(n), side="right").astype(np.uint8)
    table = np.empty((rows, n), np.uint8)
    np.put_along_axis(table, n - 1 - order, np.broadcast_to(steps, (rows, n)), 1)
    return torch.from_numpy(table).view(scores.W.shape).to(scores.W.device)


def rank_mask(table: Tensor, scores: WeightScores, pattern: Pattern) -> Tensor:
    """Which weights the pattern keeps, bool [out, in]; `table`: of its group."""
    if pattern.structured:
        return table < pattern.keep
    rows, n = scores.shape
    edges, dropped = _edges(n), n - keep_count(n, pattern.drop)
    step = bisect_right(edges, dropped)  # of the lowest rank that is kept
    if (edges[step - 1] if step else 0) == dropped:
        return table >= step
    end = edges[step] if step < len(edges) else n
    places = (table.view(rows, n) == step).nonzero()[:, 1].view(rows, -1)
    kept = top_per_row(scores.at(places), end - dropped).bool()
    return (table > step).view(rows, n).scatter_(1, places, kept).view(table.shape)


def _edges(n: int) -> list[int]:
    return [n - keep_count(n, step / STEPS) for step in range(1, STEPS)]
