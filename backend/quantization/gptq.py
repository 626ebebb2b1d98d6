"""GPTQ (Frantar et al. 2022): rounds column by column, and later columns compensate for each error.

    H^-1 = U^T U,  U upper triangular,  H = X X^T / N damped
    for j = 0, 1 ..:   q_j = nearest grid point of w_j
                       w_l <- w_l - (w_j - q_j) U_jl / U_jj      for all l > j

`compensate` returns the *compensated* weights (column j just before rounding) rather than the
rounded ones. Rounding them to the same grid gives GPTQ's codes by construction, and training can
start from them. The grid of a group is searched on the compensated weights, when its first column
is reached.

`gptq-order` adds act-order, static groups and true-sequential of the authors' code. Columns are
rounded in order of decreasing input energy. Grids are searched on the dense weights beforehand, so
groups keep their neighboring inputs and formats need not store an order. Every layer of a block
sees the inputs from the quantized layers before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.kernels.rounding import gptq_columns, usable
from backend.models.threads import parallel_map
from backend.quantization.grid import QuantGrid, split_zero, stacked
from backend.quantization.plan import QuantSettings
from backend.quantization.range_search import search_range
from backend.quantization.registry import quantizer

BLOCK = 128  # columns rounded before the remaining columns are updated
STRIP = 16  # columns rounded before the rest of their block is updated


@quantizer("gptq", label="GPTQ", needs="gram", export_rank=30, by_rows=True)
def gptq(
    W: Tensor, inputs: InputStatistics, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Compensate `W` [out, in]. The configured range search finds the grid of each group."""

    def find_grid(V: Tensor, columns: slice) -> QuantGrid:
        energy = inputs.energy[columns]
        return search_range(V, settings.bits, 0, settings.grid, settings.range_search, energy)

    size, U = settings.group_size or W.shape[1], inputs.inverse_root(damping)
    parts = W.chunk(torch.get_num_threads() if W.is_cpu else 1)
    results = parallel_map(lambda V: compensate(V, U, size, find_grid, settings.keep_zeros), parts)
    scale, zero = (torch.cat([getattr(g, part) for _, g in results]) for part in ("scale", "zero"))
    return torch.cat([V for V, _ in results]), QuantGrid(settings.bits, scale, zero)


@quantizer(
    "gptq-order",
    label="GPTQ, act-order",
    needs="gram",
    export_rank=32,
    sequential=True,
    by_rows=True,
)
def gptq_order(
    W: Tensor, inputs: InputStatistics, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Compensate `W` [out, in] in order of decreasing input energy, on a grid of the dense
    weights."""
    size = (settings.bits, settings.group_size, settings.grid)
    grid = search_range(W, *size, settings.range_search, inputs.energy)
    return compensate_ordered(W, *inputs.ordered_root(damping), grid, settings.keep_zeros), grid


def gptq_widths(
    W: Tensor, inputs: InputStatistics, widths: Sequence[QuantSettings], damping: float
) -> list[tuple[Tensor, QuantGrid]]:
    """Run `gptq` on `W` at several bit widths in one pass over its columns. The settings differ
    only in their bits. Rows are independent, so those of all widths are stacked."""
    first, rows = widths[0], len(W)

    def find_grid(V: Tensor, columns: slice) -> QuantGrid:
        energy = inputs.energy[columns]
        grids = [
            search_range(part, settings.bits, 0, settings.grid, settings.range_search, energy)
            for part, settings in zip(V.split(rows), widths, strict=True)
        ]
        return stacked(grids)

    size, root = first.group_size or W.shape[1], inputs.inverse_root(damping)
    V, grid = compensate(W.repeat(len(widths), 1), root, size, find_grid, first.keep_zeros)
    parts = zip(widths, V.split(rows), grid.scale.split(rows), grid.zero.split(rows), strict=True)
    return [(part, QuantGrid(width.bits, scale, zero)) for width, part, scale, zero in parts]


def compensate_ordered(
    W: Tensor, order: Tensor, U: Tensor, grid: QuantGrid, keep_zeros: bool = False
) -> Tensor:
    """Return the compensated weights [out, in] float32, with columns rounded in a given order.

    Args:
        order: [in], a permutation of the inputs.
        U: [in, in], factor of H^-1 with its inputs in this order.
        grid: grid of `W`, whose inputs are not permuted.
        keep_zeros: keep weights of 0 at 0.
    """
    size = W.shape[1] // grid.groups
    scale, zero = (part[:, order // size] for part in (grid.scale, grid.zero))
    nonzero = W[:, order] != 0 if keep_zeros else None
    V = W[:, order]
    for first in range(0, V.shape[1], BLOCK):
        part = slice(first, first + BLOCK)
        mask = None if nonzero is None else nonzero[:, part]
        column_scale, column_zero = scale[:, part].contiguous(), zero[:, part].contiguous()
        column_grid = QuantGrid(grid.bits, column_scale, column_zero)  # one group per column
        V[:, part], E = _columns(V[:, part], U[part, part], column_grid, mask)
        V[:, part.stop :] -= E @ U[part, part.stop :]
    return torch.empty_like(V).index_copy_(1, order, V)


def compensate(
    W: Tensor,
    U: Tensor,
    size: int,
    find_grid: Callable[[Tensor, slice], QuantGrid],
    keep_zeros: bool = False,
) -> tuple[Tensor, QuantGrid]:
    """Return the compensated weights [out, in] float32 and their grid, in groups of `size` inputs.

    Args:
        W: [out, in] float32; not modified.
        U: [in, in] upper triangular with U^T U = H^-1, H damped (`InputStatistics.inverse_root`).
        find_grid: called with the weights [out, size] and the columns of a group; returns its grid.
        keep_zeros: keep weights of 0 at 0.
    """
    nonzero = W != 0 if keep_zeros else None
    W, grids, columns = W.clone(), list[QuantGrid](), W.shape[1]
    for a in range(0, columns, size):
        group = W[:, a : a + size]
        if nonzero is not None:
            group = group * nonzero[:, a : a + size]
        grid = find_grid(group.contiguous(), slice(a, a + size))
        grids.append(grid)
        for first in range(a, a + size, BLOCK):
            last = min(first + BLOCK, a + size)
            mask = None if nonzero is None else nonzero[:, first:last]
            W[:, first:last], E = _columns(W[:, first:last], U[first:last, first:last], grid, mask)
            W[:, last:].addmm_(E, U[first:last, last:], alpha=-1)
    scale, zero = (torch.cat([getattr(g, part) for g in grids], 1) for part in ("scale", "zero"))
    return W, replace(grids[0], scale=scale, zero=zero)


def _columns(
    W: Tensor, U: Tensor, grid: QuantGrid, nonzero: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the compensated columns of W [out, width], and the errors (w - q) / U_jj [out, width].

    Args:
        grid: one group for all columns, or one group per column.
        nonzero: [out, width], weights that may change; None: all.
    """
    if usable(grid.scale, grid.zero, parts=(W, U)):
        return W, gptq_columns(W, U, grid.scale, grid.zero, grid.tops, nonzero)
    # Transposed, so that each step accesses contiguous memory.
    V, E = W.T.clone(), torch.empty_like(W.T)  # [width, out]
    integer, fraction = split_zero(grid.zero)
    scales, integers, zeros = (x.T.expand(len(V), -1) for x in (grid.scale, integer, grid.zero))
    fractions = None if fraction is None else fraction.T.expand(len(V), -1)
    tops = grid.tops
    bottoms = torch.zeros_like(tops)
    for a in range(0, len(V), STRIP):
        b = min(a + STRIP, len(V))
        for j in range(a, b):
            w = V[j]
            if nonzero is not None:
                w, V[j] = V[j].clone(), V[j] * nonzero[:, j]
            q = V[j] / scales[j]  # like `QuantGrid.nearest`, but one column at a time
            if fractions is not None:
                q.add_(fractions[j])
            q.round_().add_(integers[j]).clamp_(bottoms, tops).sub_(zeros[j]).mul_(scales[j])
            torch.sub(w, q, out=E[j]).div_(U[j, j])
            V[j + 1 : b].addr_(U[j, j + 1 : b], E[j], alpha=-1)
        V[b:].addmm_(U[a:b, b:].T, E[a:b], alpha=-1)
    return V.T, E.T
