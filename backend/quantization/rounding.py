"""Round to nearest (RTN), without calibration data: min-max or MSE-clipped grid."""

from __future__ import annotations

from torch import Tensor

from backend.quantization.grid import QuantGrid
from backend.quantization.range_search import search_range
from backend.quantization.registry import LayerInputs, QuantSettings, quantizer


@quantizer("rtn", label="RTN, min-max", needs="nothing", flops=50.0, export_rank=10)
def rtn(
    W: Tensor, inputs: LayerInputs, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Round to the grid over the full range of each group."""
    return W, _grid(W, settings, "minmax")


@quantizer("mse", label="RTN, MSE clip", needs="nothing", flops=2500.0, export_rank=20)
def mse(
    W: Tensor, inputs: LayerInputs, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Round to the clipped grid with the smallest squared weight error."""
    return W, _grid(W, settings, "mse")


def _grid(W: Tensor, settings: QuantSettings, space: str) -> QuantGrid:
    return search_range(W, settings.bits, settings.group_size, settings.grid, space)
