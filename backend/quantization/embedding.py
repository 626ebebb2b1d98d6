"""Token embedding and head, rounded to nearest.

    8 and 4 bits   any scales, as of GGUF's Q8_0 and Q4_0
    6 bits         s = c d,  c whole in 1 .. 127,  d = 2^e the same for 256 inputs of a row

The scales of 6 bits are numbers of float16 and of GGUF's Q6_K alike (ours). Does not depend on
text: a row of the embedding is used whenever its token is read, and frequencies are not known.
"""

import torch
from torch import Tensor

from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.quantization.plan import QuantSettings
from backend.quantization.range_search import search_range

SHARED = 256  # inputs with one d
LARGEST = 127  # c
LEAST = -24  # e, of the smallest float16 number


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
