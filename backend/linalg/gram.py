"""Gram matrices of bfloat16 inputs in the instructions for it, of which PyTorch gives only products
that are rounded to bfloat16: H += X^T X with float32 sums, the half on and above the diagonal; and
tr(D H D^T), the sum of the entries of D^T D times those of H, from that half."""

from collections.abc import Callable
from ctypes import CDLL, c_double, c_int32, c_void_p
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.compiler import load_if_possible
from backend.models.threads import side_by_side

TOKENS = 1024  # of which a panel stays in the cache


def _declare(library: CDLL) -> CDLL:
    pack, add, dot = (getattr(library, f"slimscope_gram_{name}") for name in ("pack", "add", "dot"))
    for function in (pack, add, dot):
        function.restype, function.argtypes = None, (c_void_p, c_void_p, *(c_int32,) * 4)
    dot.restype = c_double
    return library


@lru_cache
def _library() -> CDLL | None:
    """None where it cannot be built, or PyTorch is as fast."""
    library = load_if_possible(Path(__file__).with_name("gram.cpp"), _declare)
    return library if library and library.slimscope_gram_panel() else None


def is_fast(x: Tensor) -> bool:
    """Whether `add_gram` takes inputs like `x`."""
    return x.dtype == torch.bfloat16 and x.is_cpu and _library() is not None


def add_gram(H: Tensor, x: Tensor) -> None:
    """Add x^T x to H [in, in], on and above the diagonal. `x`: [tokens, in], see `is_fast`."""
    _by_panels("add", H, x)


def gram_dot(H: Tensor, x: Tensor) -> float:
    """tr(x H x^T) of x [tokens, in], see `is_fast`, and a symmetric H [in, in], of which the half
    on and above the diagonal is read."""
    return sum(_by_panels("dot", H, x))


def _by_panels(function: str, H: Tensor, x: Tensor) -> list[Any]:
    """Call a function of the library on x, some tokens at a time, and H; what it returns."""
    library, inputs = _library(), x.shape[-1]
    fits = x.dim() == 2 and H.shape == (inputs, inputs) and H.is_contiguous()
    if library is None or not fits or (x.dtype, H.dtype) != (torch.bfloat16, torch.float32):
        raise ValueError(f"inputs {[*x.shape]} do not fit {[*H.shape]}")
    call: Callable[..., Any] = getattr(library, f"slimscope_gram_{function}")
    found: list[Any] = []
    for rows in x.split(TOKENS):
        words, parts = packed(rows), torch.get_num_threads()
        shapes = words.data_ptr(), H.data_ptr(), len(rows), inputs, parts
        found += side_by_side(partial(call, *shapes), range(parts))
    return found


def packed(x: Tensor) -> Tensor:
    """x [tokens, in] as `tile.h` multiplies it: int32 [panels, pairs of tokens, WIDE]."""
    if not is_fast(x) or x.dim() != 2:
        raise ValueError(f"{x.dtype} {[*x.shape]} cannot be packed")
    library, rows, parts = _library(), x.contiguous(), torch.get_num_threads()
    assert library is not None
    panel = library.slimscope_gram_panel()
    words = torch.empty(-(-x.shape[1] // panel), -(-len(x) // 2), panel, dtype=torch.int32)
    shapes = rows.data_ptr(), words.data_ptr(), *x.shape, parts
    side_by_side(partial(library.slimscope_gram_pack, *shapes), range(parts))
    return words
