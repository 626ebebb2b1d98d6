"""Gram matrices of bfloat16 inputs in the instructions for it, of which PyTorch gives only products
that are rounded to bfloat16: H += X^T X with float32 sums, the half on and above the diagonal."""

from ctypes import CDLL, c_int32, c_void_p
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from backend.compiler import CompilerError, load
from backend.models.threads import side_by_side

TOKENS = 1024  # of which a panel stays in the cache


def _declare(library: CDLL) -> CDLL:
    for function in (library.slimscope_gram_pack, library.slimscope_gram_add):
        function.restype, function.argtypes = None, (c_void_p, c_void_p, *(c_int32,) * 4)
    return library


@lru_cache
def _library() -> CDLL | None:
    """None where it cannot be built, or PyTorch is as fast."""
    try:
        library = load(Path(__file__).with_name("gram.cpp"), _declare)
    except CompilerError:
        return None
    return library if library.slimscope_gram_panel() else None


def is_fast(x: Tensor) -> bool:
    """Whether `add_gram` takes inputs like `x`."""
    return x.dtype == torch.bfloat16 and x.is_cpu and _library() is not None


def add_gram(H: Tensor, x: Tensor) -> None:
    """Add x^T x to H [in, in], on and above the diagonal. `x`: [tokens, in], see `is_fast`."""
    library, inputs = _library(), x.shape[-1]
    fits = x.dim() == 2 and H.shape == (inputs, inputs) and H.is_contiguous()
    if library is None or not fits or (x.dtype, H.dtype) != (torch.bfloat16, torch.float32):
        raise ValueError(f"inputs {[*x.shape]} do not fit {[*H.shape]}")
    panel, parts = library.slimscope_gram_panel(), torch.get_num_threads()
    panels = -(-inputs // panel)
    for rows in map(Tensor.contiguous, x.split(TOKENS)):
        pairs = -(-len(rows) // 2)
        words = torch.empty(panels * pairs * panel, dtype=torch.int32)
        for step, places in (
            (library.slimscope_gram_pack, (rows, words)),
            (library.slimscope_gram_add, (words, H)),
        ):
            shapes = *map(Tensor.data_ptr, places), len(rows), inputs, parts
            side_by_side(partial(step, *shapes), range(parts))
