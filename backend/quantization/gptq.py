"""GPTQ (Frantar et al. 2022): rounds column by column and moves each error to the columns after it.

    H^-1 = U^T U,  U upper triangular,  H = X X^T / N damped
    for j = 0, 1 ..:   q_j = nearest grid point of w_j
                       w_l <- w_l - (w_j - q_j) U_jl / U_jj      for all l > j

What is returned is not the rounded weight but the *compensated* one: column j as it was when its
turn came. Rounding that to the same grid gives GPTQ's codes by construction, so a baseline is
"round it", and training starts from it like from any other weight.

The grid of a group is found when its turn comes, on the weights as they are by then.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backend.quantization.grid import QuantGrid

BLOCK = 128  # columns treated before the rest is updated

Find = Callable[
    [Tensor, slice], QuantGrid
]  # weights of one group [out, size], its columns -> its grid


def gptq(
    W: Tensor, U: Tensor, size: int, find: Find, keep_zeros: bool = False
) -> tuple[Tensor, QuantGrid]:
    """The compensated weights [out, in] float32 and their grid, groups of `size` inputs.

    Args:
        W: [out, in] float32; not changed.
        U: upper triangular with U^T U = H^-1, H damped (`Inputs.inverse_root`) [in, in].
        keep_zeros: weights that are 0 stay 0.
    """
    kept = W != 0 if keep_zeros else None
    W, found, columns = W.clone(), list[QuantGrid](), W.shape[1]
    for a in range(0, columns, size):
        group = W[:, a : a + size] if kept is None else W[:, a : a + size] * kept[:, a : a + size]
        grid = find(group.contiguous(), slice(a, a + size))
        found.append(grid)
        for first in range(a, a + size, BLOCK):
            last = min(first + BLOCK, a + size)
            mask = None if kept is None else kept[:, first:last]
            W[:, first:last], E = _columns(W[:, first:last], U[first:last, first:last], grid, mask)
            W[:, last:] -= E @ U[first:last, last:]
    scale, zero = (torch.cat([getattr(g, part) for g in found], 1) for part in ("scale", "zero"))
    return W, QuantGrid(found[0].bits, scale, zero)


def _columns(W: Tensor, U: Tensor, grid: QuantGrid, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """W [out, width] compensated column by column, and the errors (w - q) / U_jj [out, width]."""
    # Columns as rows: each step then touches neighbouring memory.
    V, E = W.T.clone(), torch.empty_like(W.T)  # [width, out]
    for j in range(len(V)):
        if kept is None:
            rounded = grid.nearest(V[j].unsqueeze(1)).squeeze(1)
            E[j] = (V[j] - rounded) / U[j, j]
        else:
            w, V[j] = V[j].clone(), V[j] * kept[:, j]
            E[j] = (w - grid.nearest(V[j].unsqueeze(1)).squeeze(1)) / U[j, j]
        V[j + 1 :] -= torch.outer(U[j, j + 1 :], E[j])
    return V.T, E.T
