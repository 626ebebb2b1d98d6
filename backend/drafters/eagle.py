"""EAGLE: a sequential drafter like EAGLE-3 (Li et al., arXiv 2503.01840).

Anchor i: the tokens up to x_{i+1} are known. With h_i the target model's last hidden state, E its
input embedding and W its head, all frozen, and y_1 .. y_{k-1} the draft tokens of a path:

    a^1 = SA(F [h_i ; E x_{i+1}])               attends to the anchors before i
    g^k = norm(a^k)                             input of the head; replaces the unknown h_{i+k}
    a^k = SA(F [g^{k-1} ; E y_{k-1}])           attends to these anchors and to a^1 .. a^{k-1}
    logits_k = W g^k

The token at every node of a tree is predicted from the path to it, in one pass per depth. In
training the path is the text, and the states are the drafter's own, as in decoding ("training-time
test" in the paper).

From the paper: drafting from the drafter's own states, training on them, and fusion of the sampled
token. Ours: the target's last hidden state instead of states of three depths, cloned layers and
their least-squares initialization (see `adapted`), the loss (see `training.loss`), and the trees
(see `draft_tree`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from backend.decoding.native.cache import DecodingCache
from backend.drafters.adapted import InnerNodes, SequentialDrafter
from backend.drafters.registry import drafter


@dataclass(frozen=True)
class AnchorTable:
    """Table of the anchors of b sequences, with one row per sequence.

    Attributes:
        rows: row of each anchor, [n].
        columns: column of each anchor, [n].
        positions: position of each anchor in its sequence, [b, M]; 0 in unused cells.
    """

    rows: Tensor
    columns: Tensor
    positions: Tensor

    @classmethod
    def of(cls, rows: Tensor, positions: Tensor, sequences: int) -> "AnchorTable":
        """Build the table from anchors sorted by sequence."""
        counts = torch.bincount(rows, minlength=sequences)
        starts = counts.cumsum(0) - counts
        columns = torch.arange(len(rows), device=rows.device) - starts[rows]
        table = positions.new_zeros(sequences, int(counts.max()))
        table[rows, columns] = positions
        return cls(rows, columns, table)

    def scatter(self, values: Tensor) -> Tensor:
        """Arrange values of anchors [n, ...] in the table [b, M, ...]."""
        table = values.new_zeros(*self.positions.shape, *values.shape[1:])
        return table.index_put((self.rows, self.columns), values)

    def gather(self, table: Tensor) -> Tensor:
        """Read the values of the anchors [n, ...] from a table [b, M, ...]."""
        return table[self.rows, self.columns]

    def visible(self, length: int, depth: int) -> Tensor:
        """Return the mask of the next draft of each anchor, [b, M, length + M depth] bool. It
        sees the positions up to its anchor, and its own drafts of the depths in the cache."""
        device = self.positions.device
        past = torch.arange(length, device=device) <= self.positions[..., None]
        drafts = torch.eye(self.positions.shape[1], dtype=torch.bool, device=device)
        drafts = drafts.repeat(1, depth)
        return torch.cat([past, drafts.expand(len(past), -1, -1)], -1)


@drafter("eagle", adaptation_layers=1, repeats=True)
class EagleDrafter(SequentialDrafter):
    """Sequential drafter with one fusion and one cloned layer."""

    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, positions: Tensor
    ) -> Tensor:
        caches = [DynamicCache() for _ in self.layers]
        length, table = hidden.shape[1], AnchorTable.of(rows, positions, len(hidden))
        slots = [self.normed(self.stages(hidden, embedded, caches)[-1][rows, positions])]
        for depth in range(1, self.config.heads):
            tokens = embedded[rows, (positions + depth).clamp(max=length - 1)]
            states = self.following(
                table.scatter(slots[-1]),
                table.scatter(tokens),
                caches,
                table.positions + depth,
                table.visible(length, depth),
            )
            slots.append(self.normed(table.gather(states)))
        return torch.stack(slots, 1)

    def next_slots(self, inner: InnerNodes, caches: list[DecodingCache]) -> Tensor:
        """Run all inner nodes at every depth, because the caches hold only anchors."""
        paths = inner.paths[1:]
        if not paths:
            return self.normed(inner.slots)
        length, device = caches[0].length, inner.tokens.device
        depths = torch.tensor([[len(path) for path in paths]], device=device)
        ancestors = torch.tensor(
            [[path[: len(prefix)] == prefix for prefix in paths] for path in paths], device=device
        )
        visible = torch.cat([ancestors.new_ones(len(paths), length), ancestors], -1)[None]
        states = self.following(
            inner.slots[None, 1:], inner.tokens[None, 1:], caches, length - 1 + depths, visible
        )
        for cache in caches:
            cache.rewind(length)
        return self.normed(states[0, -inner.new :])
