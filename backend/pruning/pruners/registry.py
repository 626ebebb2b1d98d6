"""Interface of a pruner, and the decorator that registers it."""

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
    """Registered pruner and the input statistics that it needs."""

    prune: Prune
    needs: StatisticsLevel


PRUNERS: Registry[Pruner] = Registry(DECLARED_PRUNERS)


def pruner(name: str, needs: StatisticsLevel, products: float = 0.0) -> Callable[[Prune], Prune]:
    """Register a pruner, `prune(W, inputs, pattern, damping)` -> pruned copy of W [out, in].

    `W` is float32 and must not be modified. `damping` is a share of the mean input energy. A pruner
    raises `NotPositiveDefiniteError` if more damping would help.

    Args:
        name: name in configs.
        needs: input statistics to collect.
        products: for time estimates, the maximum number of products with an [in, in] matrix per row
            of W. Other work on the Gram matrix counts as an equivalent number of products.
    """
    return PRUNERS.registering(name, lambda prune: Pruner(prune, needs))
