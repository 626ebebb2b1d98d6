"""Half-quadratic quantization (HQQ, Badri and Shaji 2023), which needs no calibration text.

    min over z of  sum_j |w_j - s (q_j - z)|^p,   p = 0.7, s from the full range

A norm with p < 1 tolerates a few large errors if that reduces the others. The problem is split by
an auxiliary error e, and both parts are solved in turn, 20 times, with beta growing by 1 %:

    e_j <- sign(d_j) max(|d_j| - |d_j|^(p-1) / beta, 0),   d_j = w_j / s - (q_j - z)
    z   <- mean_j ( q_j - w_j / s + e_j ),                 q by rounding on the grid s, z

Ours: errors are in steps of the grid, so that one beta suits all layers (the authors use the units
of the weights, and beta = 10). Every group keeps its best z (the authors stop all groups of a layer
together), rounded at the end if zero-points are integers. A symmetric grid has nothing to search.
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
    """Return the grid of the full range, with zero-points that minimize the p-norm of the
    errors."""
    initial = minmax_grid(V, bits, grid)
    if grid == "symmetric":
        return initial
    best, best_error, beta, zero = initial, None, BETA, initial.zero
    for _ in range(ROUNDS + 1):
        relaxed = QuantGrid(bits, initial.scale, zero)
        integer = zero.round().clamp_(0, initial.top)
        candidate = relaxed if grid == "offset" else QuantGrid(bits, initial.scale, integer)
        error = group_sums(_errors(V, candidate)[1].abs().pow_(P))
        if best_error is not None:
            candidate = where(error < best_error, candidate, best)
            error = error.minimum(best_error)
        best, best_error = candidate, error
        codes, D = _errors(V, relaxed)
        codes.add_(soft_threshold(D, beta)).sub_(V / initial.scale.unsqueeze(-1))
        zero, beta = group_sums(codes) / V.shape[-1], beta * KAPPA
    return best


def soft_threshold(D: Tensor, beta: float) -> Tensor:
    """Apply the generalized soft thresholding of the p-norm."""
    size = D.abs()
    return D.sign() * (size - size.clamp(min=1e-12).pow(P - 1).div_(beta)).clamp_(min=0)


def _errors(V: Tensor, grid: QuantGrid) -> tuple[Tensor, Tensor]:
    """Return q and d = w / s - (q - z), both [rows, groups, size]."""
    codes = unclipped_codes_(V.clone(), grid.scale, grid.zero).clamp_(0, grid.top)
    return codes, V / grid.scale.unsqueeze(-1) - codes + grid.zero.unsqueeze(-1)


@quantizer("hqq", label="HQQ", needs="nothing", export_rank=21)
def hqq(
    W: Tensor, inputs: InputStatistics, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Round to the grid found by `half_quadratic`."""
    return W, search_range(W, settings.bits, settings.group_size, settings.grid, "hqq")
