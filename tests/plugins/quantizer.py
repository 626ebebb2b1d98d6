"""A range search and a quantizer in one file: rounding to nine tenths of each range."""

from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.quantization.grid import QuantGrid, minmax_grid
from backend.quantization.plan import QuantSettings
from backend.quantization.range_search import search_range
from backend.quantization.registry import quantizer, range_search


@range_search("tight")
def tight(V: Tensor, bits: int, grid_type: str, weight: Tensor) -> QuantGrid:
    """Nine tenths of the range of each group."""
    return minmax_grid(V, bits, grid_type, 0.9)


@quantizer("toy-awq", label="Toy AWQ", needs="energy", export_rank=25)
def toy_awq(
    W: Tensor, inputs: InputStatistics, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Round to nearest, once the inputs of the layer have been seen."""
    assert inputs.energy.shape == W.shape[1:]
    return W, search_range(W, settings.bits, settings.group_size, settings.grid, "tight")
