"""The descents of `redense` and `weight_adjustment` in C++, where the processor has instructions
for bfloat16: all steps of a chunk of rows in one call, without the interpreter's lock. The entries
of D H are not rounded, as PyTorch's are; else it is the same algorithm."""

from ctypes import CDLL, c_float, c_int32, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.compiler import CompilerError, load

SHRINK, FIXED, ROWS = 0, 1, -1  # what follows a gradient step; others: the largest of groups
GROUPS = (2, 4, 8, 16)
KINDS = (SHRINK, FIXED, ROWS, *GROUPS)
DOWN = 8  # rows of a tile


def _declare(library: CDLL) -> CDLL:
    function = library.slimscope_descend
    arguments = (*(c_void_p,) * 6, *(c_int32,) * 5, *(c_float,) * 2)
    function.restype, function.argtypes = None, arguments
    return library


@lru_cache
def _library() -> CDLL | None:
    try:
        return load(Path(__file__).with_name("descent.cpp"), _declare)
    except CompilerError:
        return None


def usable(inputs: InputStatistics, kind: int) -> bool:
    """Whether `descend` takes weights with such inputs, and this kind of step."""
    return kind in KINDS and inputs.packed_gram is not None and _library() is not None


def descend(
    start: Tensor,
    dense: Tensor,
    inputs: InputStatistics,
    steps: int,
    kind: int,
    keep: int = 0,
    shrink: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """W [rows, in] after `steps` steps of `redense.proximal_descent`, and errors [2, rows].

    Args:
        start, dense: [rows, in], float32, without gaps.
        kind: of what follows each gradient step. SHRINK: weights become smaller by `shrink` times
            its size. FIXED: zeros of the start stay. ROWS: as many of each row are kept as at the
            start. Else: `keep` of each group of `kind`. After thresholding, W is each row where its
            error was lowest, and the errors D H D^T are those of the start and of W.
    """
    library, H, columns = _library(), inputs.packed_gram, len(inputs.gram)
    if library is None or H is None or kind not in KINDS or not 0 <= steps < 2**31 - 1:
        raise ValueError(f"{steps} steps of kind {kind} are not computed here")
    rows = len(start)
    alike = start.shape == dense.shape == (rows, columns) and inputs.gram.shape == (columns,) * 2
    whole = all(x.is_cpu and x.dtype == torch.float32 and x.is_contiguous() for x in (start, dense))
    if not alike or not whole or (kind in GROUPS and columns % kind):
        raise ValueError(f"{[*start.shape]} {start.dtype} and {[*dense.shape]} do not fit")
    room = torch.zeros(4, -(-rows // DOWN) * DOWN, H.shape[0] * H.shape[2])
    W, errors = torch.empty_like(start), torch.empty(3, rows)
    size = 1 / inputs.largest_eigenvalue if inputs.largest_eigenvalue > 0 else 0.0
    library.slimscope_descend(
        *map(Tensor.data_ptr, (start, dense, H, W, errors, room)),
        rows, columns, steps if size else 0, kind, keep, size, shrink * size,
    )  # fmt: skip
    return W, errors[:2]
