"""The contracts of range searches and post-training quantizers, and the decorators of both.

A range search finds the grid of weights in groups. A quantizer turns one layer's weights into
weights that are then rounded to the nearest point of the grid it returns: rounding to nearest
leaves them as they are, GPTQ compensates them first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from backend.quantization import DECLARED_QUANTIZERS, DECLARED_RANGE_SEARCHES
from backend.quantization.grid import QuantGrid
from backend.registry import Registry

Needs = Literal["nothing", "energy", "gram"]

# V [rows, groups, g], bits, symmetric, weight of each squared error [groups, g] -> grid
SearchRange = Callable[[Tensor, int, bool, Tensor], QuantGrid]


@dataclass(frozen=True)
class RangeSearch:
    """A range search.

    Attributes:
        needs_energy: whether it weights the error of each input by its mean square.
    """

    search: SearchRange
    needs_energy: bool


class LayerInputs(Protocol):
    """What a quantizer may know of the inputs of a layer; see `methods.calibration`."""

    @property
    def energy(self) -> Tensor:
        """Mean square of each input [in]."""

    @property
    def gram(self) -> Tensor:
        """H = X X^T / N [in, in]."""

    def inverse_root(self, damping: float) -> Tensor:
        """U [in, in], upper triangular with U^T U = H^-1, H damped."""


@dataclass(frozen=True)
class QuantSettings:
    """The quantization grid a run asks for.

    Attributes:
        group_size: inputs that share a scale; 0: the whole row.
        space: name of the range search, for quantizers that leave it to the config.
        keep_zeros: weights that are 0 stay 0.
    """

    bits: int
    group_size: int
    symmetric: bool
    space: str
    keep_zeros: bool = False


# W [out, in], inputs, settings, damping -> weights to round [out, in] and their grid
Quantize = Callable[[Tensor, LayerInputs, QuantSettings, float], tuple[Tensor, QuantGrid]]


@dataclass(frozen=True)
class Quantizer:
    """A post-training quantizer and the statistics it needs of a layer's inputs."""

    quantize: Quantize
    needs: Needs


RANGE_SEARCHES: Registry[RangeSearch] = Registry(DECLARED_RANGE_SEARCHES)
QUANTIZERS: Registry[Quantizer] = Registry(DECLARED_QUANTIZERS)


def range_search(
    name: str, *, flops: float, needs_energy: bool = False
) -> Callable[[SearchRange], SearchRange]:
    """Register a range search.

    Args:
        flops: operations per weight, the basis of time estimates.
        needs_energy: see `RangeSearch`.
    """

    def register(search: SearchRange) -> SearchRange:
        RANGE_SEARCHES.register(name, RangeSearch(search, needs_energy))
        return search

    return register


def quantizer(
    name: str, *, label: str, needs: Needs, flops: float, export_rank: int
) -> Callable[[Quantize], Quantize]:
    """Register a post-training quantizer, which becomes a stage of a quantization run.

    With `needs="nothing"` layers are rounded one by one; otherwise block by block, on the inputs
    that the blocks quantized before produce. Raise `NotPositiveDefiniteError` when more damping
    would help.

    Args:
        label: what people read.
        flops: operations per weight besides collecting the inputs.
        export_rank: the stage with the highest rank is exported by default; also the order in
            which stages are listed.
    """

    def register(quantize: Quantize) -> Quantize:
        QUANTIZERS.register(name, Quantizer(quantize, needs))
        return quantize

    return register
