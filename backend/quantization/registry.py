"""Interfaces and decorators of range searches and post-training quantizers.

A range search finds the grid of grouped weights. A quantizer returns the weights of a layer to be
rounded to the nearest point of a grid, and that grid: RTN returns the weights unchanged, GPTQ
compensates them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from backend.calibration.second_moments import InputStatistics
from backend.quantization import DECLARED_QUANTIZERS, DECLARED_RANGE_SEARCHES, GridType
from backend.quantization.bases import PLAIN, Basis
from backend.quantization.grid import QuantGrid
from backend.quantization.plan import QuantSettings
from backend.registry import Registry

Needs = Literal["nothing", "energy", "gram"]

# V [rows, groups, g], bits, type, weight of each squared error [groups, g] -> grid
SearchRange = Callable[[Tensor, int, GridType, Tensor], QuantGrid]


@dataclass(frozen=True)
class RangeSearch:
    """A range search; `needs_energy`: errors are weighted by the mean square of each input."""

    search: SearchRange
    needs_energy: bool


# W [out, in], inputs, settings, damping -> weights to round [out, in] and their grid
Quantize = Callable[[Tensor, InputStatistics, QuantSettings, float], tuple[Tensor, QuantGrid]]


@dataclass(frozen=True)
class BlockLayers:
    """The layers of one decoder block that are quantized, by their names in it.

    Attributes:
        weights: [out, in], float32.
        inputs: one object for layers with the same inputs; empty where a quantizer needs nothing.
    """

    block: nn.Module
    weights: Mapping[str, Tensor]
    inputs: Mapping[str, InputStatistics]
    settings: Mapping[str, QuantSettings]


FindBases = Callable[[BlockLayers], Mapping[str, Basis]]


def plain_bases(layers: BlockLayers) -> dict[str, Basis]:
    return dict.fromkeys(layers.weights, PLAIN)


@dataclass(frozen=True)
class Quantizer:
    """A post-training quantizer, the input statistics it needs, and the bases it rounds in.

    Attributes:
        sequential: whether layers of a block see the inputs that those before them, quantized,
            give; else those of the dense ones.
        by_rows: whether the result for a row of weights does not depend on the others: layers with
            the same inputs, settings and basis are then quantized as one, in less time.
    """

    quantize: Quantize
    needs: Needs
    bases: FindBases = plain_bases
    sequential: bool = False
    by_rows: bool = False


RANGE_SEARCHES: Registry[RangeSearch] = Registry(DECLARED_RANGE_SEARCHES)
QUANTIZERS: Registry[Quantizer] = Registry(DECLARED_QUANTIZERS)


def range_search(name: str, *, needs_energy: bool = False) -> Callable[[SearchRange], SearchRange]:
    """Register a range search; `needs_energy`: see `RangeSearch`."""
    return RANGE_SEARCHES.registering(name, lambda search: RangeSearch(search, needs_energy))


def quantizer(
    name: str,
    *,
    label: str,
    needs: Needs,
    export_rank: int,
    bases: FindBases = plain_bases,
    llama_only: bool = False,
    sequential: bool = False,
    by_rows: bool = False,
    keeps_zeros: bool = True,
    saved: bool = True,
) -> Callable[[Quantize], Quantize]:
    """Register a post-training quantizer, which becomes a stage of a quantization run.

    With `needs="nothing"` layers are rounded independently; otherwise block by block, on the
    outputs of the previously quantized blocks. Raise `NotPositiveDefiniteError` if more damping
    can help.

    Args:
        export_rank: the stage with the highest rank is exported by default; stages are listed in
            this order.
        bases: what the layers of a block are rounded in; weights and inputs come in it.
        llama_only: whether they know the blocks of LLaMA alone; others are then refused beforehand.
        sequential, by_rows: see `Quantizer`.
        keeps_zeros: whether weights that are 0 can stay 0.
        saved: whether formats of packed weights can hold the result; they know no bases.
    """
    return QUANTIZERS.registering(
        name, lambda quantize: Quantizer(quantize, needs, bases, sequential, by_rows)
    )
