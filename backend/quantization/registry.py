"""Interfaces and decorators of range searches and post-training quantizers.

A range search finds the grid of grouped weights. A quantizer returns a grid and the weights to be
rounded to its nearest points: RTN returns the weights unchanged, GPTQ compensates them.
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

# V [rows, groups, g], bits, grid type, weight of each squared error [groups, g] -> grid
SearchRange = Callable[[Tensor, int, GridType, Tensor], QuantGrid]


@dataclass(frozen=True)
class RangeSearch:
    """A range search. `needs_energy`: it weights errors by the mean square of each input."""

    search: SearchRange
    needs_energy: bool


# W [out, in], inputs, settings, damping -> weights to round [out, in] and their grid
Quantize = Callable[[Tensor, InputStatistics, QuantSettings, float], tuple[Tensor, QuantGrid]]


@dataclass(frozen=True)
class BlockLayers:
    """Quantized layers of a decoder block, by their names within it.

    Attributes:
        block: the decoder block.
        weights: weight [out, in] of each layer, float32.
        inputs: input statistics of each layer, the same object for layers with the same inputs;
            empty if the quantizer needs none.
        settings: settings of each layer.
    """

    block: nn.Module
    weights: Mapping[str, Tensor]
    inputs: Mapping[str, InputStatistics]
    settings: Mapping[str, QuantSettings]


FindBases = Callable[[BlockLayers], Mapping[str, Basis]]


def plain_bases(layers: BlockLayers) -> dict[str, Basis]:
    """Return the plain basis for every layer."""
    return dict.fromkeys(layers.weights, PLAIN)


@dataclass(frozen=True)
class Quantizer:
    """A post-training quantizer.

    Attributes:
        needs: input statistics it needs.
        bases: returns the bases in which the layers of a block are rounded.
        sequential: True if the layers of a block see the inputs from the quantized layers before
            them, False if from the dense ones.
        by_rows: True if rows of weights are quantized independently. Layers with the same inputs,
            settings and basis are then quantized together, which is faster.
    """

    quantize: Quantize
    needs: Needs
    bases: FindBases = plain_bases
    sequential: bool = False
    by_rows: bool = False


RANGE_SEARCHES: Registry[RangeSearch] = Registry(DECLARED_RANGE_SEARCHES)
QUANTIZERS: Registry[Quantizer] = Registry(DECLARED_QUANTIZERS)


def range_search(name: str, *, needs_energy: bool = False) -> Callable[[SearchRange], SearchRange]:
    """Register a range search; see `RangeSearch`."""
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
    outputs of the previously quantized blocks. The function raises `NotPositiveDefiniteError` if
    more damping can help.

    Args:
        label: name of the stage on the screen.
        needs: input statistics the quantizer needs.
        export_rank: order of the stages; the stage with the highest rank is exported by default.
        bases: returns the bases in which the layers of a block are rounded. Weights and inputs are
            passed in them.
        llama_only: True if only blocks with the structure of LLaMA's are supported. Other models
            are refused when the run is submitted.
        sequential: see `Quantizer`.
        by_rows: see `Quantizer`.
        keeps_zeros: True if weights of 0 can stay 0.
        saved: True if packed export formats can store the result. They cannot store bases.
    """
    return QUANTIZERS.registering(
        name, lambda quantize: Quantizer(quantize, needs, bases, sequential, by_rows)
    )
