"""Anchors of several sequences as a table, so that what follows them runs in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnchorTable:
    """Anchors of b sequences as a table [b, M] of their positions, 0 where unused; `rows` and
    `columns` [n]: where each stands in it."""

    rows: Tensor
    columns: Tensor
    places: Tensor

    @classmethod
    def of(cls, rows: Tensor, places: Tensor, sequences: int) -> AnchorTable:
        """Of anchors sorted by sequence."""
        counts = torch.bincount(rows, minlength=sequences)
        starts = counts.cumsum(0) - counts
        columns = torch.arange(len(rows), device=rows.device) - starts[rows]
        table = places.new_zeros(sequences, int(counts.max()))
        table[rows, columns] = places
        return cls(rows, columns, table)

    def scatter(self, values: Tensor) -> Tensor:
        """[n, ...] -> [b, M, ...]."""
        table = values.new_zeros(*self.places.shape, *values.shape[1:])
        return table.index_put((self.rows, self.columns), values)

    def gather(self, table: Tensor) -> Tensor:
        """[b, M, ...] -> [n, ...]."""
        return table[self.rows, self.columns]

    def visible(self, length: int, depth: int) -> Tensor:
        """[b, M, length + M depth] bool: what the next draft of each anchor sees: the anchor and
        those before it among `length`, and its own drafts of the depths in the cache."""
        device = self.places.device
        past = torch.arange(length, device=device) <= self.places[..., None]
        own = torch.eye(self.places.shape[1], dtype=torch.bool, device=device).repeat(1, depth)
        return torch.cat([past, own.expand(len(past), -1, -1)], -1)
