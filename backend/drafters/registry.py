"""The contract of a drafter, and the decorator that registers an architecture.

Anchor i: the tokens up to x_{i+1} are known. Head k predicts x_{i+1+k}, k = 1..K: in a *parallel*
drafter from what is known at the anchor alone, in a *sequential* one from the draft tokens, too.

    slots  = drafter.anchor_slots(hidden, embedded, rows, places)    [n, K, d], one per head
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

Embed: TypeAlias = Callable[[Tensor], Tensor]


class Drafter(nn.Module, ABC):
    """A trainable drafter, in the dtype it is created in, on the device of the target model. It
    reads out with rows of the target's own head, which stay frozen. `vocabulary`: ids [v] that can
    be drafted, ascending. `read_out`: [v, d], in the dtype of the target model; transform: of its
    logits."""

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
        """Make the layers, once config and read-out are known."""

    @abstractmethod
    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, places: Tensor
    ) -> Tensor:
        """The vectors [n, K, d] of all heads at n anchors, ready for read-out. `hidden`,
        `embedded`: [b, T, d] of whole sequences and the tokens after; `rows`, `places`: [n] of the
        anchors."""

    @abstractmethod
    def draft(
        self,
        hidden: Tensor,
        embedded: Tensor,
        policy: TreePolicy,
        caches: list[DecodingCache],
        embed: Embed,
    ) -> tuple[Tree, list[int]]:
        """A tree and a token for each of its nodes but the root, at the last of n new anchors.

        Args:
            hidden, embedded: [1, n, d], of the anchors since the last call.
            caches: of the anchors before; the new ones are appended.
            embed: token ids [...] -> [..., d].
        """

    @abstractmethod
    def new_caches(self, capacity: int) -> list[DecodingCache]:
        """The empty caches `draft` needs for `capacity` anchors."""

    def logits(self, slots: Tensor) -> Tensor:
        """[..., d] -> [..., v] over the draft vocabulary."""
        return self.transform(self.head(slots.to(self.read_out.dtype)))

    def candidates(self, slots: Tensor, ranks: int) -> list[list[tuple[int, float]]]:
        """The `ranks` most likely tokens of each slot [n, d], best first: ids and probabilities."""
        logits = self.logits(slots)
        best = most_likely(logits, min(ranks, logits.shape[-1]))
        chances, ids = best[0].exp().tolist(), self.vocabulary[best[1]].tolist()
        return [list(zip(*pair, strict=True)) for pair in zip(ids, chances, strict=True)]

    def head(self, slots: Tensor) -> Tensor:
        """W [..., d] (+ b), before the logits are scaled and capped."""
        return linear(slots, self.read_out, self.read_bias)

    def initialize(self, target: TargetModel, sequences: Sequence[Tensor]) -> float:
        """Set what an untrained drafter can know from `sequences` (token ids [L] each); return the
        share of variance that a least-squares fit explains, 0 without one."""
        return 0.0

    def quantize(self, target: TargetModel) -> bool:
        """Replace weights by 8-bit ones where the target runs natively; whether it did."""
        return False

    def copied_parameters(self) -> list[nn.Parameter]:
        """Parameters that were copied from the target model; they have their own learning rate."""
        return []

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class ParallelDrafter(Drafter):
    """A drafter whose heads draft from what is known at an anchor, all at once."""

    @abstractmethod
    def draft_slots(self, hidden: Tensor, embedded: Tensor, caches: list[DecodingCache]) -> Tensor:
        """The vectors [K, d] of all heads at the last of n new anchors; see `draft`."""

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
        found, level = self.candidates(slots, policy.ranks), list[Path]([()])
        for depth, candidates in enumerate(found, 1):
            for path in level:
                for rank, (_, chance) in enumerate(candidates):
                    chances[*path, rank] = chances[path] * chance
            level = policy.inner(chances, depth)
        tree = policy.tree(chances)
        return tree, [found[head][rank][0] for head, rank in tree.slots]


DRAFTERS: Registry[type[Drafter]] = Registry(DECLARED_DRAFTERS)
Architecture = TypeVar("Architecture", bound=type[Drafter])


def drafter(
    name: str, *, adaptation_layers: int = 0, repeats: bool = False
) -> Callable[[Architecture], Architecture]:
    """Register a drafter architecture: a class decorator. `adaptation_layers`: cloned from the end
    of the base model; `repeats`: they run again for each draft token (for estimates)."""
    return DRAFTERS.registering(name, lambda cls: cls)


def build_drafter(
    config: DrafterConfig,
    target: TargetModel,
    vocabulary: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Drafter:
    drafter = DRAFTERS[config.architecture](config, target, vocabulary, dtype)
    return drafter.requires_grad_().to(target.device)
