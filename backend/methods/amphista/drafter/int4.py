"""A drafter on 4-bit weights, for decoding on a CPU (ours).

A text is the base's own whatever is guessed, so guesses need not be exact; and what a guess costs
on a CPU is reading the drafter's weights. Rounded to 4 bits, min-max in groups of 32, they are
read in a quarter of the time. The fusions stay as they are: they are few, all else stands on them,
and rounding them costs more right guesses than it saves. The base is never touched.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backend.methods.amphista.drafter.drafter import Drafter
from backend.quantization.grid import QuantizedWeight, minmax_grid
from backend.quantization.packed_linear import DTYPE, FEW, PackedLinear, obstacle

BITS, GROUP = 4, 32
WHOLE = "fusions."  # whose names begin so are not rounded


@torch.no_grad()
def pack_int4(drafter: Drafter) -> bool:
    """Puts the linears of a trained drafter on packed weights, in place; it cannot learn any more.

    Returns:
        Whether it was done: not off a CPU, in float32, or where a head's row would not be one of
        the few the operator is fast for.
    """
    rows = drafter.read_out
    few = drafter.config.heads <= FEW
    if rows.dtype != DTYPE or rows.device.type != "cpu" or not few:
        return False
    for name, layer in list(drafter.named_modules()):
        light = isinstance(layer, nn.Linear) and not name.startswith(WHOLE)
        if light and (packed := _packed(layer.weight, layer.bias)):
            drafter.set_submodule(name, packed)
    drafter.reader = _packed(rows, drafter.read_bias)
    heads = drafter.heads
    for weights, biases in zip(heads.weight, heads.bias, strict=True):
        blocks = [_packed(w.T, b[0]) for w, b in zip(weights, biases, strict=True)]
        if None in blocks:
            break
        heads.packed.append(nn.ModuleList(filter(None, blocks)))
    return True


def _packed(weight: Tensor, bias: Tensor | None) -> PackedLinear | None:
    """A linear [out, in] on packed weights; None where the operator does not run it."""
    if weight.shape[1] % GROUP:
        return None
    W = weight.float().contiguous()
    grid = minmax_grid(W.view(len(W), -1, GROUP), BITS, symmetric=False)
    layer = QuantizedWeight(grid, grid.codes(W).byte())
    return None if obstacle(layer) else PackedLinear(layer, bias)
