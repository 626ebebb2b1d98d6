"""Packed 4-bit weights of a drafter, for decoding on a CPU (ours).

Decoding is lossless whatever is drafted, so a draft need not be exact; and the cost of a draft on a
CPU is reading the drafter's weights. Rounded to 4 bits, min-max in groups of 32, they are read in a
quarter of the time. Some layers keep their precision: the fusions are few and all else depends on
them, so rounding them costs more accepted tokens than it saves. The target model is never changed.
"""

from __future__ import annotations

from torch import Tensor, nn

from backend.quantization.grid import QuantizedWeight, minmax_grid
from backend.quantization.packed_linear import DTYPE, PackedLinear, obstacle

BITS, GROUP = 4, 32


def worth_packing(rows: Tensor) -> bool:
    """Whether packed weights pay: in bfloat16 on a CPU, where products have a row for each head."""
    return rows.dtype == DTYPE and rows.device.type == "cpu"


def pack_linears(module: nn.Module, keep: str) -> None:
    """Replace every linear inside by a packed one, in place, but those whose name starts with
    `keep` and those the operator cannot run."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and not name.startswith(keep):
            packed = packed_linear(layer.weight, layer.bias)
            if packed is not None:
                module.set_submodule(name, packed)


def packed_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear | None:
    """A linear layer on packed weights [out, in]; None where the operator cannot run it."""
    if weight.shape[1] % GROUP:
        return None
    W = weight.float().contiguous()
    grid = minmax_grid(W.view(len(W), -1, GROUP), BITS, "zero-point")
    layer = QuantizedWeight(grid, grid.codes(W).byte())
    return None if obstacle(layer) else PackedLinear(layer, bias)
