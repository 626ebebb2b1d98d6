"""The most likely tokens of rows of logits, computed by `cpp/decoder.cpp`."""

from functools import lru_cache

import torch
from torch import Tensor

from backend.compiler import NATIVE, CompilerError
from backend.decoding.native.library import library


@lru_cache
def has_library() -> bool:
    try:
        return bool(library())
    except CompilerError:
        return False


def top_k(logits: Tensor, ranks: int, target: tuple[str, ...] = NATIVE) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n, ranks] float32, descending, and places [n, ranks] int32 of the largest
    of each row of `logits` [n, v], the first place of equal ones first. Where fewer are finite, the
    rest are at place 0 with the log-probability -inf, or NaN.

    Torch sorts every row for it, which takes longer than a layer of a drafter. Raises
    CompilerError: the decoder cannot be built here. ValueError: the logits are no rows, or no rank
    is asked for."""
    if logits.dim() != 2 or ranks < 1:
        raise ValueError(f"{ranks} ranks cannot be taken of logits {[*logits.shape]}")
    rows, columns = logits.shape
    held = logits.float().contiguous()
    values = torch.empty(rows, ranks, dtype=torch.float32)
    places, sums = torch.empty(rows, ranks, dtype=torch.int32), torch.empty(rows, 1)
    found = [x.data_ptr() for x in (values, places, sums)]
    library(target).slimscope_top_k(held.data_ptr(), rows, columns, ranks, *found)
    return values - sums, places
