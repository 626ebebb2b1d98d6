"""The layout of GPTQ, and that of AWQ (gemm; read only): codes in columns of W^T.

GPTQ

    qweight  int32 [in n / 32, out]       q along columns of W^T
    qzeros   int32 [groups, out n / 32]   z (gptq_v2) or z - 1 (gptq)
    scales   float16 [groups, out]
    g_idx    int32 [in]                   group of each input

AWQ

    qweight  int32 [in, out n / 32]       q along rows of W^T, in the order AWQ_ORDER
    qzeros   int32 [groups, out n / 32]   z, likewise
    scales   float16 [groups, out]
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backend.export.bit_packing import check_shape, pack, unpack, words_for
from backend.export.formats import Layout
from backend.quantization.grid import QuantizedWeight

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # columns in the eight codes of a word, lowest bits first


def gptq_tensors(layer: QuantizedWeight, layout: Layout, stored: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a layer, by name suffix."""
    zero = layer.grid.zero.to(torch.uint8)
    columns = torch.arange(layer.codes.shape[1], dtype=torch.int32)
    return {
        "qweight": pack(layer.codes, layout.bits).T,
        "qzeros": pack(zero.T - _zero_offset(layout), layout.bits),
        "scales": layer.grid.scale.to(stored).T,
        "g_idx": columns // layer.group_size,
    }


def _zero_offset(layout: Layout) -> int:
    """The number that GPTQ's first version subtracts from zero-points."""
    return 1 if layout.format == "gptq" else 0


def from_gptq(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], scales and zero-points [out, groups]. Raises KeyError, ValueError: a tensor
    is missing or has another shape."""
    rows, columns = tensors["scales"].shape[1], len(tensors["g_idx"])
    groups = len(tensors["scales"])
    check_shape("qweight", tensors["qweight"], (words_for(columns, layout.bits), rows))
    check_shape("qzeros", tensors["qzeros"], (groups, words_for(rows, layout.bits)))
    codes = unpack(tensors["qweight"].T.contiguous(), layout.bits, columns)
    zero = unpack(tensors["qzeros"], layout.bits, rows).T + _zero_offset(layout)
    return codes, tensors["scales"].T, zero


def from_awq(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """See `from_gptq`."""
    columns, (groups, rows) = len(tensors["qweight"]), tensors["scales"].shape
    check_shape("qweight", tensors["qweight"], (columns, words_for(rows, layout.bits)))
    check_shape("qzeros", tensors["qzeros"], (groups, words_for(rows, layout.bits)))
    place = torch.tensor(AWQ_ORDER).argsort()
    codes, zero = (
        unpack(tensors[part], layout.bits, rows).view(count, -1, len(place))[..., place].flatten(1)
        for part, count in (("qweight", columns), ("qzeros", groups))
    )
    return codes.T.contiguous(), tensors["scales"].T, zero.T


def gptq_config(layout: Layout) -> dict[str, Any]:
    """The `quantization_config` of config.json."""
    return {
        "quant_method": "gptq",
        "bits": layout.bits,
        "group_size": layout.group_size or -1,
        "desc_act": False,
        "sym": layout.grid == "symmetric",
        "checkpoint_format": layout.format,
        "pack_dtype": "int32",
        "lm_head": False,
    }
