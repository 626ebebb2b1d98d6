"""Interface of drafters, and the decorator that registers an architecture.

Anchor i: the tokens up to x_{i+1} are known. Head k predicts x_{i+1+k}, k = 1..K. In a *parallel*
drafter it reads only the state of the anchor, in a *sequential* one also the earlier draft tokens.
A slot is the vector [d] from which a head predicts a token.

    slots  = drafter.anchor_slots(hidden, embedded, rows, positions)  [n, K, d], one per head
    logits = drafter.logits(slots)                                  [n, K, v], draft vocabulary
    tree, tokens = drafter.draft(hidden, embedded, policy, caches, embed)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from backend.decoding.acceptance import most_likely
from backend.decoding.draft_tree import Path, Tree, TreePolicy
from backend.decoding.native.cache import DecodingCache
from backend.decoding.target_model import TargetModel
from backend.drafters.config import DECLARED_DRAFTERS, DrafterConfig
from backend.registry import Registry

Embed: TypeAlias = Callable[[Tensor], Tensor]  # token ids [...] -> embeddings [..., d]


class Drafter(nn.Module, ABC):
    """A trainable drafter on the device of the target model. Its logits come from rows of the
    target's head, which stay frozen.

    Attributes:
        vocabulary: token ids [v] that can be drafted, ascending.
        read_out: rows [v, d] of the target's head, in its dtype.
        read_bias: bias [v] of these rows; None without one.
        transform: transformation of the target's logits.
    """

    vocabulary: Tensor

    def __init__(
        self,
        config: DrafterConfig,
        target: TargetModel,
        vocabulary: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config, self.width = config, target.width
        self.register_buffer("vocabulary", vocabulary.long().to(target.device))
        rows, bias = self.vocabulary, target.head.bias
        self.read_out = target.head.weight.detach()[rows]
        self.transform = target.transform
        self.read_bias = None if bias is None else bias.detach()[rows]
        self.build(target, dtype)

    def build(self, target: TargetModel, dtype: torch.dtype) -> None:
        """Create the layers. Called when config and read-out are set."""

    @abstractmethod
    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, positions: Tensor
    ) -> Tensor:
        """Return the slots [n, K, d] of all heads at n anchors.

        Args:
            hidden: hidden states [b, T, d] of whole sequences.
            embedded: embeddings [b, T, d] of the tokens after them.
            rows: sequence of each anchor, [n].
            positions: position of each anchor, [n].
        """

    @abstractmethod
    def draft(
        self,
        hidden: Tensor,
        embedded: Tensor,
        policy: TreePolicy,
        caches: list[DecodingCache],
        embed: Embed,
    ) -> tuple[Tree, list[int]]:
        """Draft at the last of n new anchors. Return a tree, and a token for each of its nodes
        except the root.

        Args:
            hidden: hidden states [1, n, d] of the anchors since the last call.
            embedded: embeddings [1, n, d] of the tokens after them.
            policy: chooses the tree.
            caches: caches of the earlier anchors; the new anchors are appended.
            embed: embeds token ids.
        """

    @abstractmethod
    def new_caches(self, capacity: int) -> list[DecodingCache]:
        """Create empty caches for `draft` with room for `capacity` anchors."""

    def logits(self, slots: Tensor) -> Tensor:
        """Return the logits [..., v] of slots [..., d] over the draft vocabulary."""
        return self.transform(self.head(slots.to(self.read_out.dtype)))

    def candidates(self, slots: Tensor, ranks: int) -> list[list[tuple[int, float]]]:
        """Return the ids and probabilities of the `ranks` most likely tokens of each slot [n, d],
        best first."""
        logits = self.logits(slots)
        best = most_likely(logits, min(ranks, logits.shape[-1]))
        chances, ids = best[0].exp().tolist(), self.vocabulary[best[1]].tolist()
        return [list(zip(*pair, strict=True)) for pair in zip(ids, chances, strict=True)]

    def head(self, slots: Tensor) -> Tensor:
        """Return W slots (+ b) [..., v], before the logits are scaled and capped."""
        return linear(slots, self.read_out, self.read_bias)

    def initialize(self, target: TargetModel, sequences: Sequence[Tensor]) -> float:
        """Initialize weights from `sequences` (token ids [L] each). Return the share of variance
        explained by a least-squares fit; 0 without a fit."""
        return 0.0

    def quantize(self, target: TargetModel) -> bool:
        """Quantize weights to 8 bits if the target runs natively. Return True if they are."""
        return False

    def copied_parameters(self) -> list[nn.Parameter]:
        """Return the parameters copied from the target model, which have separate learning
        rates."""
        return []

    def parameter_count(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


class ParallelDrafter(Drafter):
    """A drafter whose heads all draft at once from the state of an anchor."""

    @abstractmethod
    def draft_slots(self, hidden: Tensor, embedded: Tensor, caches: list[DecodingCache]) -> Tensor:
        """Return the slots [K, d] of all heads at the last of n new anchors; see `draft`."""

    def draft(
        self,
        hidden: Tensor,
        embedded: Tensor,
        policy: TreePolicy,
        caches: list[DecodingCache],
        embed: Embed,
    ) -> tuple[Tree, list[int]]:
        slots = self.draft_slots(hidden, embedded, caches)
        chances: dict[Path, float] = {(): 1.0}
        candidates, level = self.candidates(slots, policy.ranks), list[Path]([()])
        for depth, head_candidates in enumerate(candidates, 1):
            for path in level:
                for rank, (_, chance) in enumerate(head_candidates):
                    chances[*path, rank] = chances[path] * chance
            level = policy.inner(chances, depth)
        tree = policy.tree(chances)
        return tree, [candidates[head][rank][0] for head, rank in tree.slots]


DRAFTERS: Registry[type[Drafter]] = Registry(DECLARED_DRAFTERS)
Architecture = TypeVar("Architecture", bound=type[Drafter])


def drafter(
    name: str, *, adaptation_layers: int = 0, repeats: bool = False
) -> Callable[[Architecture], Architecture]:
    """Class decorator that registers a drafter architecture.

    Args:
        adaptation_layers: number of layers cloned from the end of the base model.
        repeats: True if these layers run again for each draft token; used for time estimates.
    """
    return DRAFTERS.registering(name, lambda cls: cls)


def build_drafter(
    config: DrafterConfig,
    target: TargetModel,
    vocabulary: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Drafter:
    """Create an untrained drafter for `target`."""
    drafter = DRAFTERS[config.architecture](config, target, vocabulary, dtype)
    return drafter.requires_grad_().to(target.device)
