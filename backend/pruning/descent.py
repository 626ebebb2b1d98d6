"""The descents of `redense` and `weight_adjustment` in C++, where the processor has instructions
for bfloat16, without the interpreter's lock: each thread takes a few rows at a time through all
steps. The entries of D H are not rounded, as PyTorch's are; else it is the same algorithm."""

from ctypes import CDLL, c_float, c_int32, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.compiler import load_if_possible
from backend.models.threads import side_by_side

SHRINK, FIXED, ROWS = 0, 1, -1  # what follows a gradient step; others: the largest of groups
GROUPS = (2, 4, 8, 16)
KINDS = (SHRINK, FIXED, ROWS, *GROUPS)
CHUNK_ROWS = 48  # whole tiles; of a layer a thread that has a core for itself takes more of them


def _declare(library: CDLL) -> CDLL:
    arguments = (*(c_void_p,) * 7, *(c_int32,) * 6, *(c_float,) * 2)
    library.slimscope_descend.restype, library.slimscope_descend.argtypes = None, arguments
    return library


@lru_cache
def _library() -> CDLL | None:
    return load_if_possible(Path(__file__).with_name("descent.cpp"), _declare)


def usable(inputs: InputStatistics, kind: int) -> bool:
    """Whether `descend` takes weights with such inputs, and this kind of step."""
    return kind in KINDS and inputs.packed_gram is not None and _library() is not None


def descend(
    start: Tensor, dense: Tensor, inputs: InputStatistics, steps: int, kind: int, amount: float = 0
) -> tuple[Tensor, Tensor]:
    """W [rows, in] after `steps` steps of `redense.proximal_descent`, and errors [2, rows].

    Args:
        start, dense: [rows, in], float32, without gaps.
        kind: of what follows each gradient step. SHRINK: weights become smaller by `amount` times
            its size. FIXED: zeros of the start stay. ROWS: as many of each row are kept as at the
            start. Else: `amount` of each group of `kind`. After thresholding, W is each row where
            its error was lowest, and the errors D H D^T are those of the start and of W.

    Raises ValueError: this is not `usable`, or does not fit."""
    library, H, (rows, columns) = _library(), inputs.packed_gram, (len(start), len(inputs.gram))
    if library is None or H is None or kind not in KINDS or not 0 <= steps < 2**31 - 1:
        raise ValueError(f"{steps} steps of kind {kind} are not computed here")
    alike = start.shape == dense.shape == (rows, columns) and inputs.gram.shape == (columns,) * 2
    whole = all(x.is_cpu and x.dtype == torch.float32 and x.is_contiguous() for x in (start, dense))
    if not alike or not whole or (kind in GROUPS and columns % kind):
        raise ValueError(f"{[*start.shape]} {start.dtype} and {[*dense.shape]} do not fit")
    threads, wide = torch.get_num_threads(), H.shape[0] * H.shape[2]
    rooms, taken = torch.empty(threads, 4, CHUNK_ROWS, wide), torch.zeros(1, dtype=torch.int32)
    W, errors = torch.empty_like(start), torch.empty(3, rows)
    size = 1 / inputs.largest_eigenvalue if inputs.largest_eigenvalue > 0 else 0.0
    shared, steps = (start, dense, H, W, errors), steps if size else 0
    keep = 0 if kind == SHRINK else int(amount)

    def work(room: Tensor) -> None:
        places = map(Tensor.data_ptr, (*shared, room, taken))
        shape = rows, columns, CHUNK_ROWS, steps, kind, keep
        library.slimscope_descend(*places, *shape, size, amount * size)

    side_by_side(work, [*rooms])
    return W, errors[:2]
