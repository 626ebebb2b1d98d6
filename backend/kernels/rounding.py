"""Elementwise kernels on the weights of a layer (`cpp/rounding.h`).

`RoundedRows` uses as many threads as PyTorch for a large layer. `grid_errors` and `gptq_columns`
run on the calling thread; their callers split the rows of a layer, which are independent, between
threads."""

from ctypes import byref

import torch
from torch import Tensor

from backend.kernels.library import Rows, check, kernels, kernels_or_none

COLUMNS = 128  # maximum number of columns of `gptq_columns`
LEAST = 2**18  # minimum number of weights for several threads
HALF = {torch.float32: 0, torch.bfloat16: 1}  # dtype -> `half` flag of the kernels


def usable(*tensors: Tensor, parts: tuple[Tensor, ...] = ()) -> bool:
    """Return True if the kernels support these tensors: float32 on a CPU, and contiguous.

    Args:
        tensors: contiguous tensors.
        parts: tensors whose rows are contiguous, with any row stride.
    """
    return (
        kernels_or_none() is not None
        and all(x.is_cpu and x.dtype == torch.float32 for x in (*tensors, *parts))
        and all(x.is_contiguous() for x in tensors)
        and all(x.stride(-1) == 1 for x in parts)
    )


def grid_errors(V: Tensor, scale: Tensor, zero: Tensor, weight: Tensor, top: int) -> Tensor:
    """Compute the weighted errors sum_j h_j (w_j - s (q_j - z))^2 of groups on several grids.

    Args:
        V: weights w [rows, groups, size].
        scale: scales s [..., rows, groups], for one or several grids.
        zero: zero-points z, same shape as `scale`.
        weight: weights h of the errors [groups, size].
        top: largest code.

    Returns:
        [..., rows, groups].
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
    """Quantize a block of columns with GPTQ; W is updated in place by the compensation.

    Args:
        W: [out, width]; may be part of a larger matrix.
        U: [width, width]; may be part of a larger matrix.
        scale: [out, 1] or [out, width].
        zero: same shape as `scale`.
        tops: largest code of each row [out].
        kept: [out, width], False for pruned weights; None if no weight is pruned.

    Returns:
        errors (w - q) / U_jj [out, width].

    Raises:
        ValueError: there are more than `COLUMNS` columns, or the shape of `scale` is wrong.
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
    """Rows of a layer in quantization-aware training; see `dlqat.linear`.

    Args:
        start: initial weights W0 [rows, in].
        dense: weights [rows, in] whose zeros stay zero; None if there are none.
        A: factor of the low-rank update [rank, in].
        B: factor of the low-rank update [rows, rank].
        scale: [rows, groups].
        zero: zero-points [rows, groups].
        m: magnitudes [rows, groups].
        top: largest code.
        factor: factor c of the update c B A.
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
        self._tensors = (start, dense, A, B, scale, zero, m)  # keeps the memory of `_rows` alive
        (rows, columns), groups = start.shape, scale.shape[1]
        self._top = top
        self._shape = rows, groups, columns // groups
        self._threads = torch.get_num_threads() if rows * columns >= LEAST else 1
        pointers = [None if x is None else x.data_ptr() for x in self._tensors]
        self._rows = byref(Rows(*pointers, rows, columns, columns // groups, len(A), top, factor))

    def levels(self) -> tuple[Tensor, Tensor]:
        """Compute the levels of all weights.

        Returns:
            q - z, and 1 for weights that were not clipped, else 0; both float32 [rows, groups,
            size].
        """
        level, inside = torch.empty(self._shape), torch.empty(self._shape)
        pointers = level.data_ptr(), inside.data_ptr()
        check(kernels().levels(self._rows, *pointers, self._threads))
        return level, inside

    def snapshot_statistics(self, dense: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
        """Compute the statistics of a training snapshot on the calling thread.

        Args:
            dense: original weights [rows, in].

        Returns:
            number of codes that differ from those of W0; histogram of the codes [2^n]; squared
            error sum (W_hat - dense)^2 of each group [rows, groups]; number of weights inside the
            range in each group [rows, groups].
        """
        counts, changed = torch.zeros(self._top + 1, dtype=torch.long), torch.zeros(1).long()
        error, inside = torch.empty(self._shape[:2]), torch.empty(self._shape[:2])
        pointers = map(Tensor.data_ptr, (dense, counts, changed, error, inside))
        kernels().snapshot_statistics(self._rows, *pointers)
        return int(changed), counts, error, inside

    def values(self, out: Tensor) -> None:
        """Write the rounded weights W_hat to `out` [rows, in]."""
        target = out.data_ptr(), HALF[out.dtype]
        check(kernels().values(self._rows, *target, self._threads))

    def backward(self, G: Tensor, dm: Tensor, out: Tensor | None) -> None:
        """Compute gradients.

        Args:
            G: dL/dW_hat [rows, in]; replaced by D = dL/dW'.
            dm: receives dL/dm [rows, groups].
            out: receives W_hat [rows, in] in the dtype of G; None to skip it.
        """
        pointers = G.data_ptr(), None if out is None else out.data_ptr(), dm.data_ptr()
        check(kernels().backward(self._rows, *pointers, HALF[G.dtype], self._threads))
