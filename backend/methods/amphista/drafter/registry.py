"""The contract of a drafter, and the decorator that registers an architecture.

Anchor i: the tokens up to x_{i+1} are known. Head k predicts x_{i+1+k}, k = 1..K. Training, head
accuracy and decoding see a drafter only through three steps:

    stages = drafter.stages(hidden, embedded, caches)   sequential in the anchors, cached
    slots  = drafter.slots(stages)                      [n, K, d], one vector per head
    logits = drafter.logits(slots)                      [n, K, v], over the draft vocabulary
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from backend.methods.amphista.config import DECLARED_DRAFTERS, DrafterConfig
from backend.methods.amphista.target_model import DecodingCache, TargetModel
from backend.registry import Registry


class Drafter(nn.Module, ABC):
    """A trainable drafter, in the dtype it is created in, on the device of the target model.

    It reads out with rows of the target's own head, which stay frozen.

    Args:
        vocabulary: ids [v] that can be drafted, ascending.

    Attributes:
        read_out: [v, d], in the dtype of the target model.
        transform: what the target model does with its logits.
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

    @abstractmethod
    def stages(
        self, hidden: Tensor, embedded: Tensor, caches: list[DecodingCache] | None = None
    ) -> list[Tensor]:
        """The states [b, n, d] that the heads read.

        Args:
            hidden, embedded: [b, n, d] states of new anchors, embeddings of the tokens after them.
            caches: of the anchors before; None: `hidden` begins at the first anchor.
        """

    @abstractmethod
    def slots(self, stages: list[Tensor]) -> Tensor:
        """One vector per head for n anchors, ready for read-out: stages [n, d] -> [n, K, d]."""

    @abstractmethod
    def new_caches(self, capacity: int) -> list[DecodingCache]:
        """The empty caches `stages` needs for `capacity` anchors."""

    def logits(self, slots: Tensor) -> Tensor:
        """[..., d] -> [..., v] over the draft vocabulary."""
        return self.transform(self.head(slots.to(self.read_out.dtype)))

    def head(self, slots: Tensor) -> Tensor:
        """W [..., d] (+ b), before the logits are scaled and capped."""
        return linear(slots, self.read_out, self.read_bias)

    def initialize(self, target: TargetModel, sequences: Sequence[Tensor], fitted: bool) -> float:
        """Set what an untrained drafter can know from `sequences` (token ids [L] each).

        Args:
            fitted: whether to fit weights by least squares.

        Returns:
            Share of variance the fit explains; 0 without a fit.
        """
        return 0.0

    def compress(self, target: TargetModel) -> bool:
        """Replace weights by 4-bit ones for decoding on a CPU; whether that was done.

        The drafter cannot be trained afterwards.
        """
        return False

    def copied_parameters(self) -> list[nn.Parameter]:
        """Parameters that were copied from the target model; they have their own learning rate."""
        return []

    def parameter_count(self) -> int:
        """Number of weights added to the target model."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """Logits [b, n, K, v] of every anchor of whole sequences [b, n, d]."""
        stages = [stage.flatten(0, 1) for stage in self.stages(hidden, embedded)]
        return self.logits(self.slots(stages)).unflatten(0, hidden.shape[:2])


DRAFTERS: Registry[type[Drafter]] = Registry(DECLARED_DRAFTERS)
Architecture = TypeVar("Architecture", bound=type[Drafter])


def drafter(name: str) -> Callable[[Architecture], Architecture]:
    """Register a drafter architecture: a class decorator."""

    def register(cls: Architecture) -> Architecture:
        DRAFTERS.register(name, cls)
        return cls

    return register


def build_drafter(
    config: DrafterConfig,
    target: TargetModel,
    vocabulary: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Drafter:
    """An untrained drafter of the architecture the config names."""
    return DRAFTERS[config.architecture](config, target, vocabulary, dtype)
