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

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from backend.methods.amphista.config import DrafterConfig
from backend.methods.amphista.drafter.adapted import AdaptedDrafter
from backend.methods.amphista.drafter.registry import Embed, drafter
from backend.methods.amphista.target_model import DecodingCache, TargetModel
from backend.methods.amphista.tree import Path, Tree, TreePolicy


@dataclass(frozen=True)
class AnchorTable:
    """Anchors of b sequences as a table [b, M]; sequences with fewer have unused places.

    Attributes:
        rows, columns: [n] where each anchor stands in it.
        places: [b, M] position in its sequence; 0 where unused.
    """

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

    def spread(self, values: Tensor) -> Tensor:
        """[n, d] -> [b, M, d]."""
        table = values.new_zeros(*self.places.shape, values.shape[-1])
        return table.index_put((self.rows, self.columns), values)

    def gather(self, table: Tensor) -> Tensor:
        """[b, M, d] -> [n, d]."""
        return table[self.rows, self.columns]

    def visible(self, length: int, depth: int) -> Tensor:
        """[b, M, length + depth M] bool: what the draft at each depth from 1 sees: its anchor and
        those before it among `length`, and its own path."""
        past = torch.arange(length, device=self.places.device) <= self.places[..., None]
        own = torch.eye(self.places.shape[1], dtype=torch.bool, device=self.places.device)
        return torch.cat([past, own.repeat(1, depth).expand(len(past), -1, -1)], -1)


@drafter("eagle")
class EagleDrafter(AdaptedDrafter):
    """A sequential drafter of one fusion and one or two cloned layers."""

    def __init__(
        self,
        config: DrafterConfig,
        target: TargetModel,
        vocabulary: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(config, target, vocabulary, dtype, [2 * target.width])
        self.last = target.context - 1
        self.requires_grad_().to(target.device)

    def following(
        self,
        normed: Tensor,
        embedded: Tensor,
        caches: Sequence[Any],
        positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """a^k of n drafts of each sequence, appended to the caches: [b, n, d].

        Args:
            normed: [b, n, d] g^{k-1}; embedded: [b, n, d] of the draft tokens after it.
            positions: [b, n]; those beyond the context are never kept.
            visible: [b, n, cached + n] bool.
        """
        positions = positions.clamp(max=self.last)
        state = self.fused(0, normed / self.hidden_scale, embedded / self.token_scale)
        for layer, cache in zip(self.layers, caches, strict=True):
            state = layer(state * self.stream_scale, cache, positions, visible) / self.stream_scale
        return state

    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, places: Tensor
    ) -> Tensor:
        """The slots of chosen anchors along the text; see `Drafter`."""
        caches = [DynamicCache() for _ in self.layers]
        length, table = hidden.shape[1], AnchorTable.of(rows, places, len(hidden))
        slots = [self.normed(self.stages(hidden, embedded, caches)[-1][rows, places])]
        for depth in range(1, self.config.heads):
            tokens = embedded[rows, (places + depth).clamp(max=length - 1)]
            states = self.following(
                table.spread(slots[-1]),
                table.spread(tokens),
                caches,
                table.places + depth,
                table.visible(length, depth),
            )
            slots.append(self.normed(table.gather(states)))
        return torch.stack(slots, 1)

    def draft(
        self,
        hidden: Tensor,
        embedded: Tensor,
        policy: TreePolicy,
        caches: list[DecodingCache],
        embed: Embed,
    ) -> tuple[Tree, list[int]]:
        """The tree depth by depth; see `Drafter`.

        All inner nodes so far are run again at every depth, so that the caches hold anchors only.
        """
        slots = self.normed(self.stages(hidden, embedded, caches)[-1][0, -1:])
        chances: dict[Path, float] = {(): 1.0}
        tokens: dict[Path, int] = {}
        inner, inputs, level = list[Path](), list[Tensor](), list[Path]([()])
        for depth in range(1, self.config.heads + 1):
            for path, found in zip(level, self.candidates(slots, policy.ranks), strict=True):
                for rank, (token, chance) in enumerate(found):
                    tokens[*path, rank], chances[*path, rank] = token, chances[path] * chance
            before, level = level, policy.inner(chances, depth)
            if not level or depth == self.config.heads:
                break
            inner += level
            chosen = torch.tensor([tokens[path] for path in level], device=hidden.device)
            parents = slots[[before.index(path[:-1]) for path in level]]
            inputs.append(torch.stack([parents, embed(chosen).to(slots.dtype)]))
            slots = self.normed(self._along(inner, torch.cat(inputs, 1), caches))[-len(level) :]
        tree = policy.tree(chances)
        return tree, [tokens[path] for path in tree.paths]

    def _along(self, paths: list[Path], inputs: Tensor, caches: list[DecodingCache]) -> Tensor:
        """a at the ends of paths, from inputs [2, n, d]; the caches stay as they are."""
        length, device = caches[0].length, inputs.device
        depths = torch.tensor([[len(path) for path in paths]], device=device)
        own = torch.tensor(
            [[path[: len(other)] == other for other in paths] for path in paths], device=device
        )
        visible = torch.cat([own.new_ones(len(paths), length), own], -1)[None]
        states = self.following(inputs[:1], inputs[1:], caches, length - 1 + depths, visible)[0]
        for cache in caches:
            cache.rewind(length)
        return states
