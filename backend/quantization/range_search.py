"""Range search: find the scales and zero-points of a layer, its quantization grid. The grid is then
fixed: training moves weights on it and scales groups, but does not change it.

    minmax      the full range of a group, including 0: `backend.quantization.grid.minmax_grid`
    mse         the range shrunk by the ratio with the smallest E = sum_j (w_j - s (q_j - z))^2
                of the group: in 1.00, 0.94 .. 0.46, then in steps of 0.01 around the best
    weighted    the same with E = sum_j h_j (..)^2, h_j = H_jj the energy of input j    (ours)
    lsq         starting there, Adam on E with the gradients of LSQ+ (Bhalgat et al. 2020):
                dw/ds = q - z - w / s inside the range and q - z where clipped
                dw/dz = 0 inside and -s where clipped
                kept for the groups whose E, with z as the grid allows it, decreased

The DL-QAT paper starts from "a predefined quantization space"; the available text does not
specify how it is determined.

Token embedding and head are rounded to nearest:

    8 and 4 bits   any scales, as of GGUF's Q8_0 and Q4_0
    6 bits         s = c d,  c whole in 1 .. 127,  d = 2^e the same for 256 inputs of a row

The scales of 6 bits are numbers of float16 and of GGUF's Q6_K alike (ours). Does not depend on
text: a row of the embedding is used whenever its token is read, and frequencies are not known.
"""

import torch
from torch import Tensor

from backend.kernels.rounding import grid_errors, usable
from backend.models.threads import side_by_side
from backend.quantization import GridType
from backend.quantization.grid import (
    QuantGrid,
    QuantizedWeight,
    group_scales,
    minmax_grid,
    unclipped_codes_,
)
from backend.quantization.plan import QuantSettings
from backend.quantization.registry import RANGE_SEARCHES, range_search

COARSE = tuple(round(1 - 0.06 * step, 2) for step in range(1, 10))
FINE = (-0.03, -0.02, -0.01, 0.01, 0.02, 0.03)  # around the best of them, for each group
LSQ_STEPS, LSQ_RATE = 100, 0.01
PANEL = 2**17  # weights searched at once, to fit into a core's cache
SHARED = 256  # inputs with one d
LARGEST = 127  # c
LEAST = -24  # e, of the smallest float16 number


def search_range(
    W: Tensor, bits: int, group_size: int, grid: GridType, space: str, energy: Tensor | None = None
) -> QuantGrid:
    """The grid of `W` [out, in] float32, in groups of `group_size` inputs (0: the whole row).

    Args:
        space: name of a range search.
        energy: mean square of each input [in]; None: equal weights.
    """
    size, method = group_size or W.shape[1], RANGE_SEARCHES[space]
    weight = torch.ones_like(W[0]) if energy is None or not method.needs_energy else energy
    weight = weight.view(-1, size)
    panels = [rows.view(len(rows), -1, size) for rows in W.split(max(1, PANEL // W.shape[1]))]
    grids = side_by_side(lambda V: method.search(V, bits, grid, weight), panels)
    return QuantGrid(bits, torch.cat([g.scale for g in grids]), torch.cat([g.zero for g in grids]))


@range_search("minmax")
def minmax(V: Tensor, bits: int, grid: GridType, weight: Tensor) -> QuantGrid:
    """The full range of each group."""
    return minmax_grid(V, bits, grid)


@range_search("mse")
@range_search("weighted", needs_energy=True)
def clipped(V: Tensor, bits: int, grid: GridType, weight: Tensor) -> QuantGrid:
    """The shrunk range with the smallest error, for each group."""
    low, high = V.amin(-1), V.amax(-1)
    best = group_scales(low, high, bits, grid)
    least, kept = _error(V, best, weight), torch.ones_like(low)
    for ratios in (COARSE, FINE):  # all of them at once: [ratios, rows, groups]
        center = kept if ratios is FINE else torch.zeros_like(kept)
        tried = (center + V.new_tensor(ratios).view(-1, 1, 1)).clamp_(max=1.0)
        shrunk = group_scales(low, high, bits, grid, tried)
        error, at = _error(V, shrunk, weight).min(0, keepdim=True)
        scale, zero, ratio = (x.gather(0, at)[0] for x in (shrunk.scale, shrunk.zero, tried))
        better = error[0] < least
        best = where(better, QuantGrid(bits, scale, zero), best)
        kept, least = torch.where(better, ratio, kept), torch.minimum(error[0], least)
    return best


@range_search("lsq", needs_energy=True)
def lsq(V: Tensor, bits: int, grid: GridType, weight: Tensor) -> QuantGrid:
    """The clipped range, then learned scales and, unless symmetric, zero-points."""
    return _learned(V, clipped(V, bits, grid, weight), weight, grid)


def _error(V: Tensor, grid: QuantGrid, weight: Tensor) -> Tensor:
    """E of each group [.., rows, groups]; grids may be several."""
    if usable(V, grid.scale, grid.zero, weight):
        return grid_errors(V, grid.scale, grid.zero, weight, grid.top)
    D = V.expand(*grid.scale.shape, -1).clone()
    unclipped_codes_(D, grid.scale, grid.zero).clamp_(0, grid.top)
    D.sub_(grid.zero.unsqueeze(-1)).mul_(grid.scale.unsqueeze(-1)).sub_(V).square_().mul_(weight)
    return group_sums(D)


def group_sums(V: Tensor) -> Tensor:
    """Sums over the last dimension of `V` [rows, groups, size]: [rows, groups].

    A product with ones is several times faster on a CPU than summing short rows.
    """
    return (V.reshape(-1, V.shape[-1]) @ V.new_ones(V.shape[-1])).view(V.shape[:-1])


def where(condition: Tensor, grid: QuantGrid, other: QuantGrid) -> QuantGrid:
    """`grid` for the groups where the condition [rows, groups] holds, else the other."""
    scale = torch.where(condition, grid.scale, other.scale)
    return QuantGrid(grid.bits, scale, torch.where(condition, grid.zero, other.zero))


def _learned(V: Tensor, start: QuantGrid, weight: Tensor, grid: GridType) -> QuantGrid:
    """`start` after `LSQ_STEPS` steps of Adam on scales and, unless symmetric, zero-points."""
    ratio, shift = torch.ones_like(start.scale), torch.zeros_like(start.zero)
    size = group_sums(V.square() * weight)  # so that Adam's epsilon is as small for all groups
    size = torch.where(size > 0, size, 1.0)
    moved = [ratio] if grid == "symmetric" else [ratio, shift]
    optimizer = torch.optim.Adam(moved, LSQ_RATE)
    for _ in range(LSQ_STEPS):
        scale, zero = start.scale * ratio, start.zero + shift
        by_scale, by_zero = _gradients(V, scale, zero, start.top, weight)
        ratio.grad, shift.grad = by_scale * start.scale / size, by_zero / size
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
    """dE/ds and dE/dz [rows, groups]; zero-points need not be integers."""
    s, z = scale.unsqueeze(-1), zero.unsqueeze(-1)
    v = V / s
    u = (v + z).round_()
    q = u.clamp(0, top)
    clipped = u.ne_(q)  # 1 where clipped
    level = q.sub_(z)
    G = torch.sub(level * s, V).mul_(2 * weight)  # dE/dw
    by_scale = group_sums(G * (level - v * (1 - clipped)))
    return by_scale, -scale * group_sums(G * clipped)


def quantize_embedding(W: Tensor, settings: QuantSettings, stored: torch.dtype) -> QuantizedWeight:
    """`W` [vocabulary, hidden] on its grid, whose scales are numbers of `stored`."""
    W = W.float()
    grid = search_range(W, settings.bits, settings.group_size, settings.grid, settings.space)
    if settings.bits == 6 and settings.grid == "symmetric":
        c, d = factors(grid.scale, W.shape[1])
        grid = QuantGrid(grid.bits, c * d, grid.zero)
    grid = grid.stored(stored, settings.grid)
    codes = torch.empty(W.shape, dtype=torch.uint8, device=W.device)
    for rows in torch.arange(len(W), device=W.device).split(
        2**12
    ):  # in float32 all codes are four times as large
        part = QuantGrid(grid.bits, grid.scale[rows], grid.zero[rows])
        codes[rows] = part.codes(W[rows]).to(torch.uint8)
    return QuantizedWeight(grid, codes)


def factors(scale: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """c and d, [rows, groups] each; the last inputs of a row may be fewer than `SHARED`."""
    size = max(1, SHARED * scale.shape[1] // columns)  # groups with one d
    padded = torch.nn.functional.pad(scale, (0, -scale.shape[1] % size))
    top = padded.view(len(scale), -1, size).amax(-1, keepdim=True).expand(-1, -1, size)
    d = (top.flatten(1)[:, : scale.shape[1]] / LARGEST).log2().ceil().clamp(min=LEAST).exp2()
    return (scale / d).round().clamp(1, LARGEST), d
