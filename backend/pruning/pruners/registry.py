"""The contract of a pruner, and the decorator that registers one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.pruning.pattern import Pattern
from backend.pruning.pruners import DECLARED_PRUNERS
from backend.registry import Registry

Prune = Callable[[Tensor, InputStatistics, Pattern, float], Tensor]


@dataclass(frozen=True)
class Pruner:
    """A pruner and the statistics it needs of a layer's inputs."""

    prune: Prune
    needs: StatisticsLevel


PRUNERS: Registry[Pruner] = Registry(DECLARED_PRUNERS)


def pruner(name: str, needs: StatisticsLevel, products: float = 0.0) -> Callable[[Prune], Prune]:
    """Register a pruner: `prune(W, inputs, pattern, damping)` -> pruned copy of W [out, in].

    `W` is float32 and must not be changed; `damping` is a share of the mean input energy. Raise
    `NotPositiveDefiniteError` when more damping would help. `products`: with an [in, in] matrix per
    row of W, at most; what else is done with the Gram counted as such. For time estimates."""
    return PRUNERS.registering(name, lambda prune: Pruner(prune, needs))
