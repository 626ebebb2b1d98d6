"""Round to nearest (RTN) on a min-max grid, without calibration data."""

from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.quantization.grid import QuantGrid
from backend.quantization.plan import QuantSettings
from backend.quantization.range_search import search_range
from backend.quantization.registry import quantizer


@quantizer("rtn", label="RTN, min-max", needs="nothing", export_rank=10)
def rtn(
    W: Tensor, inputs: InputStatistics, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Round to the grid of the full range of each group."""
    return W, search_range(W, settings.bits, settings.group_size, settings.grid, "minmax")
