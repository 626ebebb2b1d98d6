"""Amphista-J (ours): heads that see each other's guesses, in one block behind the context.

Anchor i: the tokens up to x_{i+1} are known. With h_i the target model's last hidden state, E its
input embedding and W its head, all frozen:

    a_i = SA(F [h_i ; E x_{i+1}])                    causal, its own key-value cache
    g_1 = norm(a_i)                                  head 1 reads the deepest state
    g_k = norm(a_i + SiLU(M_k a_i + c_k))            k = 2 .. K-1; M, c start at zero
    y_k = argmax W g_k                               first guesses, one read-out for all
    [b_2 .. b_K] = SA([F [g_1 ; E y_1] .. F [g_{K-1} ; E y_{K-1}]])
    logits_1 = W g_1,   logits_k = W norm(b_k)

In the second pass of the same layer every position of the block sees the anchors up to i and the
whole block, in both directions. So what heads tell each other is news, the guesses of the others,
where in Amphista all slots are functions of the same two states. Without `encoder` each position
sees the anchors and itself alone: the twin with as many weights that tells what the interaction is
worth.

In training the guesses are the drafter's own, as in decoding. Their read-outs W g_k have a loss of
their own, and behind a wrong guess the loss of b_k weighs less (`training.loss`), because decoding
rarely goes on there.

Bi-directional attention between heads is Amphista's. A block of queries that attends to the context
is found in DFlash and P-EAGLE, too; the guesses, the shared layer and the loss are our design.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from backend.methods.amphista.config import DrafterConfig
from backend.methods.amphista.drafter.adapted import AdaptedDrafter
from backend.methods.amphista.drafter.amphista import Heads
from backend.methods.amphista.drafter.anchor_table import AnchorTable
from backend.methods.amphista.drafter.registry import (
    Embed,
    ParallelDrafter,
    TrainingSlots,
    drafter,
)
from backend.methods.amphista.target_model import DecodingCache, TargetModel


@drafter("joint", repeats=True)
class JointDrafter(AdaptedDrafter, ParallelDrafter):
    """Two passes through the same layers: of the anchor, and of a block of guesses."""

    def __init__(
        self,
        config: DrafterConfig,
        target: TargetModel,
        vocabulary: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(config, target, vocabulary, dtype, 1)
        self.block = config.heads - 1
        self.heads = Heads(1, max(self.block - 1, 0), target.width, dtype)
        self.requires_grad_().to(target.device)

    def first_slots(self, state: Tensor) -> Tensor:
        """What the first guesses are read from: a [n, d] -> g [n, K - 1, d]."""
        later = self.heads(state[:, None].expand(-1, len(self.heads), -1))
        return self.normed(torch.cat([state[:, None], later], 1))

    def guesses(self, slots: Tensor) -> Tensor:
        """Ids [n, K - 1] of g [n, K - 1, d]."""
        best = self.top_k(self.logits(slots.flatten(0, 1)), 1)[1]
        return self.vocabulary[best].view(slots.shape[:2])

    def training_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, places: Tensor, embed: Embed
    ) -> TrainingSlots:
        """Those of the heads, then those of the first guesses but head 1's; see `Drafter`."""
        caches = [DynamicCache() for _ in self.layers]
        state = self.stages(hidden, embedded, caches)[-1][rows, places]
        if not self.block:
            return TrainingSlots(self.normed(state)[:, None])
        first = self.first_slots(state)
        guesses, table = self.guesses(first.detach()), AnchorTable.of(rows, places, len(hidden))
        ahead = torch.arange(1, self.block + 1, device=rows.device)
        states = self.following(
            table.scatter(first).flatten(1, 2),
            table.scatter(embed(guesses).to(first.dtype)).flatten(1, 2),
            caches,
            (table.places[..., None] + ahead).flatten(1),
            table.visible(hidden.shape[1], torch.kron(table.same(), self._seen(rows.device))),
        )
        block = self.normed(table.gather(states.unflatten(1, (-1, self.block))))
        slots = torch.cat([first[:, :1], block, first[:, 1:]], 1)
        return TrainingSlots(slots, tuple(range(1, self.block)), guesses)

    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, places: Tensor, embed: Embed
    ) -> Tensor:
        """The slots of chosen anchors; see `Drafter`."""
        training = self.training_slots(hidden, embedded, rows, places, embed)
        return training.slots[:, : self.config.heads]

    def draft_slots(
        self, hidden: Tensor, embedded: Tensor, caches: list[DecodingCache], embed: Embed
    ) -> Tensor:
        """The slots of the last anchor; see `ParallelDrafter`."""
        state = self.stages(hidden, embedded, caches)[-1][0, -1:]
        if not self.block:
            return self.normed(state)
        first, length = self.first_slots(state), caches[0].length
        ahead = torch.arange(self.block, device=state.device)
        own = self._seen(state.device)
        states = self.following(
            first,
            embed(self.guesses(first)).to(first.dtype),
            caches,
            length + ahead[None],
            torch.cat([own.new_ones(self.block, length), own], -1)[None],
        )
        for cache in caches:
            cache.rewind(length)
        return torch.cat([first[0, :1], self.normed(states[0])])

    def _seen(self, device: torch.device) -> Tensor:
        """[K - 1, K - 1] bool: which positions of the block each one sees."""
        shape = (self.block, self.block)
        if self.config.encoder:
            return torch.ones(shape, dtype=torch.bool, device=device)
        return torch.eye(self.block, dtype=torch.bool, device=device)

    def quantize_blocks(self, light: Callable[[Tensor, Tensor | None], nn.Module | None]) -> None:
        """Of the residual blocks of the first guesses."""
        self.heads.quantize_blocks(light)
