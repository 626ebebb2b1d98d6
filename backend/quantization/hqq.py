"""Half-quadratic quantization (HQQ, Badri and Shaji 2023): no calibration text.

    min over z of  sum_j |w_j - s (q_j - z)|^p,   p = 0.7, s that of the full range

A norm with p < 1 lets a few weights be far off where that brings the others closer. Split by an
auxiliary error e and solved in turn, 20 times, with beta growing by 1 %:

    e_j <- sign(d_j) max(|d_j| - |d_j|^(p-1) / beta, 0),   d_j = w_j / s - (q_j - z)
    z   <- mean_j ( q_j - w_j / s + e_j ),                 q by rounding on the grid s, z

Ours: errors are in steps of the grid, so that one beta suits all layers (the authors have them in
the units of the weights, and beta = 10); every group keeps its best z (the authors stop all groups
of a layer together), and where zero-points are whole it is rounded at the end. A symmetric grid has
nothing to search.
"""

from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.quantization import GridType
from backend.quantization.grid import QuantGrid, minmax_grid, unclipped_codes_
from backend.quantization.plan import QuantSettings
from backend.quantization.range_search import group_sums, search_range, where
from backend.quantization.registry import quantizer, range_search

P, BETA, KAPPA, ROUNDS = 0.7, 10.0, 1.01, 20


@range_search("hqq")
def half_quadratic(V: Tensor, bits: int, grid: GridType, weight: Tensor) -> QuantGrid:
    """The full range, its zero-points moved to the least p-norm of the errors."""
    found = minmax_grid(V, bits, grid)
    if grid == "symmetric":
        return found
    best, least, beta, zero = found, None, BETA, found.zero
    for _ in range(ROUNDS + 1):
        moved = QuantGrid(bits, found.scale, zero)
        whole = zero.round().clamp_(0, found.top)
        stored = moved if grid == "offset" else QuantGrid(bits, found.scale, whole)
        error = group_sums(_errors(V, stored)[1].abs().pow_(P))
        if least is not None:
            stored = where(error < least, stored, best)
            error = error.minimum(least)
        best, least = stored, error
        codes, D = _errors(V, moved)
        codes.add_(shrunk(D, beta)).sub_(V / found.scale.unsqueeze(-1))
        zero, beta = group_sums(codes) / V.shape[-1], beta * KAPPA
    return best


def shrunk(D: Tensor, beta: float) -> Tensor:
    """Generalized soft thresholding of the p-norm."""
    size = D.abs()
    return D.sign() * (size - size.clamp(min=1e-12).pow(P - 1).div_(beta)).clamp_(min=0)


def _errors(V: Tensor, grid: QuantGrid) -> tuple[Tensor, Tensor]:
    """q and d = w / s - (q - z), both [rows, groups, size]."""
    codes = unclipped_codes_(V.clone(), grid.scale, grid.zero).clamp_(0, grid.top)
    return codes, V / grid.scale.unsqueeze(-1) - codes + grid.zero.unsqueeze(-1)


@quantizer("hqq", label="HQQ", needs="nothing", export_rank=21)
def hqq(
    W: Tensor, inputs: InputStatistics, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Round to the half-quadratic grid."""
    return W, search_range(W, settings.bits, settings.group_size, settings.grid, "hqq")
