"""A sequential drafter, like EAGLE-3 (Li et al., arXiv 2503.01840): token after token.

Anchor i: the tokens up to x_{i+1} are known. With h_i the target model's last hidden state, E its
input embedding and W its head, all frozen, and y_1 .. y_{k-1} the draft tokens of a path:

    a^1 = SA(F [h_i ; E x_{i+1}])               attends to the anchors before i
    g^k = norm(a^k)                             what the head reads; stands for the unknown h_{i+k}
    a^k = SA(F [g^{k-1} ; E y_{k-1}])           attends to those anchors and to a^1 .. a^{k-1}
    logits_k = W g^k

So the token at every node of a tree is predicted from the path to it, in one pass for each depth.
In training the path is that of the text, and the states are the drafter's own, as they will be in
decoding ("training-time test" in the paper).

From the paper: drafting from own states, trained on them, with the sampled token fused in. Ours:
the target's last hidden state instead of states of three depths, cloned layers and their
least-squares start (see `adapted`), the loss (see `training.loss`), the trees (see `tree`).
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
    """Anchors of b sequences as a table [b, M] of their positions, 0 where unused; `rows` and
    `columns` [n]: where each stands in it."""

    rows: Tensor
    columns: Tensor
    places: Tensor

    @classmethod
    def of(cls, rows: Tensor, places: Tensor, sequences: int) -> "AnchorTable":
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


@drafter("eagle", adaptation_layers=1, repeats=True)
class EagleDrafter(SequentialDrafter):
    """A sequential drafter of one fusion and one cloned layer."""

    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, places: Tensor
    ) -> Tensor:
        caches = [DynamicCache() for _ in self.layers]
        length, table = hidden.shape[1], AnchorTable.of(rows, places, len(hidden))
        slots = [self.normed(self.stages(hidden, embedded, caches)[-1][rows, places])]
        for depth in range(1, self.config.heads):
            tokens = embedded[rows, (places + depth).clamp(max=length - 1)]
            states = self.following(
                table.scatter(slots[-1]),
                table.scatter(tokens),
                caches,
                table.places + depth,
                table.visible(length, depth),
            )
            slots.append(self.normed(table.gather(states)))
        return torch.stack(slots, 1)

    def next_slots(self, inner: InnerNodes, caches: list[DecodingCache]) -> Tensor:
        """All inner nodes are run again at every depth: the caches hold anchors only."""
        paths = inner.paths[1:]
        if not paths:
            return self.normed(inner.slots)
        length, device = caches[0].length, inner.tokens.device
        depths = torch.tensor([[len(path) for path in paths]], device=device)
        own = torch.tensor(
            [[path[: len(other)] == other for other in paths] for path in paths], device=device
        )
        visible = torch.cat([own.new_ones(len(paths), length), own], -1)[None]
        states = self.following(
            inner.slots[None, 1:], inner.tokens[None, 1:], caches, length - 1 + depths, visible
        )
        for cache in caches:
            cache.rewind(length)
        return self.normed(states[0, -inner.new :])
