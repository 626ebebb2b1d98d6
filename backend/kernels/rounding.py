"""Loops over the weights of a layer (`cpp/rounding.h`). Those of a whole layer take as many threads
as PyTorch, the others one: their callers share out rows, which do not depend on each other."""

from ctypes import byref

import torch
from torch import Tensor

from backend.kernels.library import Rows, check, kernels, kernels_or_none

COLUMNS = 128  # the most that `gptq_columns` takes
LEAST = 2**18  # weights, from which on several threads are worth it
HALF = {torch.float32: 0, torch.bfloat16: 1}


def usable(*tensors: Tensor, parts: tuple[Tensor, ...] = ()) -> bool:
    """Whether the kernels can be called on these: float32 on a CPU, without gaps; of `parts` only
    each row is."""
    return (
        kernels_or_none() is not None
        and all(x.is_cpu and x.dtype == torch.float32 for x in (*tensors, *parts))
        and all(x.is_contiguous() for x in tensors)
        and all(x.stride(-1) == 1 for x in parts)
    )


def grid_errors(V: Tensor, scale: Tensor, zero: Tensor, weight: Tensor, top: int) -> Tensor:
    """sum_j h_j (w_j - s (q_j - z))^2 of each group: [.., rows, groups].

    Args:
        V: [rows, groups, size].
        scale, zero: [.., rows, groups], of several grids.
        weight: h [groups, size].
    """
    rows, groups, size = V.shape
    errors, count = torch.empty_like(scale), rows * groups
    kernels().grid_errors(
        *map(Tensor.data_ptr, (V, scale, zero, weight, errors)),
        count,
        scale.numel() // max(count, 1),
        groups,
        size,
        top,
    )
    return errors


def gptq_columns(
    W: Tensor, U: Tensor, scale: Tensor, zero: Tensor, tops: Tensor, kept: Tensor | None
) -> Tensor:
    """Compensate some columns W [out, width] in place; the errors (w - q) / U_jj [out, width].

    Args:
        W, U: parts of larger matrices; U [width, width].
        scale, zero: [out, 1] or [out, width].
        tops: Q of each row, [out].
        kept: [out, width] bool.
    """
    rows, width = W.shape
    if width > COLUMNS or scale.shape[1] not in (1, width):
        raise ValueError(f"{width} columns on {scale.shape[1]} groups")
    errors = torch.empty(rows, width)
    kept = None if kept is None else kept.contiguous()
    kernels().gptq_columns(
        W.data_ptr(),
        W.stride(0),
        U.data_ptr(),
        U.stride(0),
        scale.data_ptr(),
        zero.data_ptr(),
        scale.shape[1],
        tops.data_ptr(),
        None if kept is None else kept.data_ptr(),
        errors.data_ptr(),
        rows,
        width,
    )
    return errors


class RoundedRows:
    """Rows of a layer that is trained inside its grid; see `dlqat.linear`.

    Args:
        start, dense: W0 and, where its zeros stay, the dense weight, [rows, in].
        A, B: [rank, in], [rows, rank].
        scale, zero, m: [rows, groups].
    """

    def __init__(
        self,
        start: Tensor,
        dense: Tensor | None,
        A: Tensor,
        B: Tensor,
        scale: Tensor,
        zero: Tensor,
        m: Tensor,
        top: int,
        factor: float,
    ) -> None:
        self._held = (start, dense, A, B, scale, zero, m)
        (rows, columns), groups = start.shape, scale.shape[1]
        self._top = top
        self._shape = rows, groups, columns // groups
        self._threads = torch.get_num_threads() if rows * columns >= LEAST else 1
        pointers = [None if x is None else x.data_ptr() for x in self._held]
        self._rows = byref(Rows(*pointers, rows, columns, columns // groups, len(A), top, factor))

    def levels(self) -> tuple[Tensor, Tensor]:
        """q - z, and 1 where rounding was not clipped: float32 [rows, groups, size]."""
        level, inside = torch.empty(self._shape), torch.empty(self._shape)
        places = level.data_ptr(), inside.data_ptr()
        check(kernels().levels(self._rows, *places, self._threads))
        return level, inside

    def figures(self, dense: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
        """Codes that differ from those of W0; the count of each, [2^n]; of each group, [rows,
        groups], the sum of (What - dense)^2 and the number of weights inside the range. On one
        thread."""
        counts, changed = torch.zeros(self._top + 1, dtype=torch.long), torch.zeros(1).long()
        error, inside = torch.empty(self._shape[:2]), torch.empty(self._shape[:2])
        places = map(Tensor.data_ptr, (dense, counts, changed, error, inside))
        kernels().figures(self._rows, *places)
        return int(changed), counts, error, inside

    def values(self, out: Tensor) -> None:
        """Write What into `out` [rows, in]."""
        where = out.data_ptr(), HALF[out.dtype]
        check(kernels().values(self._rows, *where, self._threads))

    def backward(self, G: Tensor, dm: Tensor, out: Tensor | None) -> None:
        """Turn dL/dWhat [rows, in] into D, and write dL/dm [rows, groups] and, into `out`, What."""
        place = None if out is None else out.data_ptr()
        where = G.data_ptr(), place, dm.data_ptr(), HALF[G.dtype]
        check(kernels().backward(self._rows, *where, self._threads))
