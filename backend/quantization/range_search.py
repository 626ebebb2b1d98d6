"""Range searches, which find the scales and zero-points of a layer (its quantization grid).

Training moves weights on the grid and scales groups, but does not change the grid.

    minmax      the full range of a group, including 0: `backend.quantization.grid.minmax_grid`
    mse         the range shrunk by the ratio with the smallest E = sum_j (w_j - s (q_j - z))^2
                of the group: in 1.00, 0.94 .. 0.46, then in steps of 0.01 around the best
    weighted    the same with E = sum_j h_j (..)^2, h_j = H_jj the energy of input j    (ours)
    lsq         starts from `weighted`, then Adam on E with the gradients of LSQ+ (Bhalgat et al.
                2020): dw/ds = q - z - w / s inside the range and q - z if clipped,
                dw/dz = 0 inside and -s if clipped;
                used for the groups whose E decreases with a z that the grid allows

The DL-QAT paper starts from "a predefined quantization space"; the available text does not
specify how it is determined.

Token embedding and head are rounded to nearest:

    8 and 4 bits   any scales, as in GGUF's Q8_0 and Q4_0
    6 bits         s = c d,  c an integer in 1 .. 127,  d = 2^e shared by 256 inputs of a row

The 6-bit scales are exact both in float16 and in GGUF's Q6_K (ours). The search does not depend on
text, because the frequencies of tokens are not known.
"""

from functools import cache

import torch
from torch import Tensor

from backend.kernels.rounding import grid_errors, usable
from backend.models.devices import device_memory
from backend.models.threads import parallel_map
from backend.quantization import GridType
from backend.quantization.grid import (
    QuantGrid,
    QuantizedWeight,
    group_scales,
    joined,
    minmax_grid,
    unclipped_codes_,
)
from backend.quantization.plan import QuantSettings
from backend.quantization.registry import RANGE_SEARCHES, range_search

COARSE_RATIOS = tuple(round(1 - 0.06 * step, 2) for step in range(1, 10))
FINE_OFFSETS = (-0.03, -0.02, -0.01, 0.01, 0.02, 0.03)  # around the best coarse ratio of a group
LSQ_STEPS, LSQ_RATE = 100, 0.01
PANEL_WEIGHTS = 2**17  # weights searched at once on a CPU, to fit into a core's cache
# On other devices, the float32 copies of these weights take a share of the memory. It does not
# depend on the free memory, because the result must not.
PANEL_COPIES, PANEL_SHARE = 12, 1 / 16
EMBEDDING_ROWS = 2**12  # rows of an embedding that are quantized at once
SHARED_INPUTS = 256  # inputs with the same d
MAX_FACTOR = 127  # maximum of c
MIN_EXPONENT = -24  # minimum exponent of d; 2^-24 is the smallest float16 number


def search_range(
    W: Tensor, bits: int, group_size: int, grid: GridType, method: str, energy: Tensor | None = None
) -> QuantGrid:
    """Return the grid of `W` [out, in] float32, in groups of `group_size` inputs (0: the whole
    row).

    Args:
        method: name of a range search.
        energy: mean square of each input [in]; None: equal weights.
    """
    size, entry = group_size or W.shape[1], RANGE_SEARCHES[method]
    weight = torch.ones_like(W[0]) if energy is None or not entry.needs_energy else energy
    weight = weight.view(-1, size)
    panel_rows = max(1, _panel_weights(W.device) // W.shape[1])
    panels = [rows.view(len(rows), -1, size) for rows in W.split(panel_rows)]
    grids = parallel_map(lambda V: entry.search(V, bits, grid, weight), panels)
    return QuantGrid(bits, torch.cat([g.scale for g in grids]), torch.cat([g.zero for g in grids]))


@cache
def _panel_weights(device: torch.device) -> int:
    """Return the number of weights to search at once."""
    if device.type == "cpu":
        return PANEL_WEIGHTS
    return int(PANEL_SHARE * device_memory(device).total) // (4 * PANEL_COPIES)


@range_search("minmax")
def minmax(V: Tensor, bits: int, grid: GridType, weight: Tensor) -> QuantGrid:
    """Return the grid of the full range of each group."""
    return minmax_grid(V, bits, grid)


@range_search("mse")
@range_search("weighted", needs_energy=True)
def clipped(V: Tensor, bits: int, grid: GridType, weight: Tensor) -> QuantGrid:
    """Return the shrunk range with the smallest error of each group."""
    low, high = V.amin(-1), V.amax(-1)
    best = group_scales(low, high, bits, grid)
    best_error, best_ratio = _error(V, best, weight), torch.ones_like(low)
    for offsets in (COARSE_RATIOS, FINE_OFFSETS):
        center = best_ratio if offsets is FINE_OFFSETS else torch.zeros_like(best_ratio)
        # all candidates at once: [ratios, rows, groups]
        ratios = (center + V.new_tensor(offsets).view(-1, 1, 1)).clamp_(max=1.0)
        shrunk = group_scales(low, high, bits, grid, ratios)
        error, index = _error(V, shrunk, weight).min(0, keepdim=True)
        scale, zero, ratio = (x.gather(0, index)[0] for x in (shrunk.scale, shrunk.zero, ratios))
        better = error[0] < best_error
        best = where(better, QuantGrid(bits, scale, zero), best)
        best_ratio = torch.where(better, ratio, best_ratio)
        best_error = torch.minimum(error[0], best_error)
    return best


@range_search("lsq", needs_energy=True)
def lsq(V: Tensor, bits: int, grid: GridType, weight: Tensor) -> QuantGrid:
    """Return the clipped range with learned scales and, unless symmetric, zero-points."""
    return _learned(V, clipped(V, bits, grid, weight), weight, grid)


def _error(V: Tensor, grid: QuantGrid, weight: Tensor) -> Tensor:
    """Return E of each group [.., rows, groups]. `grid` may hold several candidates."""
    if usable(V, grid.scale, grid.zero, weight):
        return grid_errors(V, grid.scale, grid.zero, weight, grid.top)
    D = V.expand(*grid.scale.shape, -1).clone()
    unclipped_codes_(D, grid.scale, grid.zero).clamp_(0, grid.top)
    D.sub_(grid.zero.unsqueeze(-1)).mul_(grid.scale.unsqueeze(-1)).sub_(V).square_().mul_(weight)
    return group_sums(D)


def group_sums(V: Tensor) -> Tensor:
    """Return the sums [rows, groups] over the last dimension of `V` [rows, groups, size].

    On a CPU a product with ones is several times faster than summing short rows.
    """
    return (V.reshape(-1, V.shape[-1]) @ V.new_ones(V.shape[-1])).view(V.shape[:-1])


def where(condition: Tensor, a: QuantGrid, b: QuantGrid) -> QuantGrid:
    """Return grid `a` for the groups with a true condition [rows, groups], and `b` for the rest."""
    scale = torch.where(condition, a.scale, b.scale)
    return QuantGrid(a.bits, scale, torch.where(condition, a.zero, b.zero))


def _learned(V: Tensor, start: QuantGrid, weight: Tensor, grid: GridType) -> QuantGrid:
    """Return `start` after `LSQ_STEPS` steps of Adam on scales and, unless symmetric,
    zero-points."""
    ratio, shift = torch.ones_like(start.scale), torch.zeros_like(start.zero)
    # gradients are normalized, so that Adam's epsilon is equally small for all groups
    norm = group_sums(V.square() * weight)
    norm = torch.where(norm > 0, norm, 1.0)
    parameters = [ratio] if grid == "symmetric" else [ratio, shift]
    optimizer = torch.optim.Adam(parameters, LSQ_RATE)
    for _ in range(LSQ_STEPS):
        scale, zero = start.scale * ratio, start.zero + shift
        by_scale, by_zero = _gradients(V, scale, zero, start.top, weight)
        ratio.grad, shift.grad = by_scale * start.scale / norm, by_zero / norm
        optimizer.step()
    zero = start.zero + shift
    if grid != "offset":
        zero = zero.round_().clamp_(0, start.top)
    learned = QuantGrid(start.bits, (start.scale * ratio).abs_(), zero)
    better = _error(V, learned, weight) < _error(V, start, weight)
    return where(better, learned, start)


def _gradients(
    V: Tensor, scale: Tensor, zero: Tensor, top: int, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return dE/ds and dE/dz [rows, groups]. Zero-points need not be integers."""
    s, z = scale.unsqueeze(-1), zero.unsqueeze(-1)
    v = V / s
    u = (v + z).round_()
    q = u.clamp(0, top)
    clipped = u.ne_(q)  # 1 where clipped
    level = q.sub_(z)
    G = torch.sub(level * s, V).mul_(2 * weight)  # dE/dw
    by_scale = group_sums(G * (level - v * (1 - clipped)))
    return by_scale, -scale * group_sums(G * clipped)


def quantize_embedding(
    W: Tensor, settings: QuantSettings, scale_dtype: torch.dtype
) -> QuantizedWeight:
    """Quantize `W` [vocabulary, hidden]. Scales are rounded to `scale_dtype`."""
    parts, size = list[QuantizedWeight](), (settings.bits, settings.group_size, settings.grid)
    # in slices, because all weights in float32 would take several times the memory
    for rows in W.split(EMBEDDING_ROWS):
        rows = rows.float()
        grid = search_range(rows, *size, settings.range_search)
        if settings.bits == 6 and settings.grid == "symmetric":
            c, d = factors(grid.scale, W.shape[1])
            grid = QuantGrid(grid.bits, c * d, grid.zero)
        grid = grid.stored(scale_dtype, settings.grid)
        parts.append(QuantizedWeight(grid, grid.codes(rows).to(torch.uint8)))
    return joined(parts)


def factors(scale: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Split 6-bit scales into c and d, [rows, groups] each. The last inputs of a row may be fewer
    than `SHARED_INPUTS`."""
    size = max(1, SHARED_INPUTS * scale.shape[1] // columns)  # groups with the same d
    padded = torch.nn.functional.pad(scale, (0, -scale.shape[1] % size))
    top = padded.view(len(scale), -1, size).amax(-1, keepdim=True).expand(-1, -1, size)
    d = (
        (top.flatten(1)[:, : scale.shape[1]] / MAX_FACTOR)
        .log2()
        .ceil()
        .clamp(min=MIN_EXPONENT)
        .exp2()
    )
    return (scale / d).round().clamp(1, MAX_FACTOR), d
