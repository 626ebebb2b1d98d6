"""The layout pack-quantized of compressed-tensors, and our own, which differs from it in its zeros.

compressed-tensors (signed codes q - 2^(n-1), stored with an offset)

    weight_packed       int32 [out, ceil(in n / 32)]      q along rows
    weight_scale        [out, groups]                     s
    weight_zero_point   int32 [ceil(out n / 32), groups]  z along columns; absent if symmetric
    weight_shape        int64 [2]

slimscope

    the same, and of a grid with offsets
    weight_offset       [out, groups]                     b = -s z, in the dtype of the scales
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backend.export.bit_packing import check_shape, pack, unpack, words_for
from backend.export.formats import Layout
from backend.quantization.grid import QuantizedWeight, offsets_of, zeros_of


def packed_tensors(
    layer: QuantizedWeight, layout: Layout, stored: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of a layer, by name suffix."""
    tensors = {
        "weight_packed": pack(layer.codes, layout.bits),
        "weight_scale": layer.grid.scale.to(stored),
        "weight_shape": torch.tensor(layer.codes.shape),
    }
    if layout.grid == "offset":
        tensors["weight_offset"] = offsets_of(layer.grid.scale, layer.grid.zero).to(stored)
    elif layout.grid != "symmetric":
        tensors["weight_zero_point"] = pack(layer.grid.zero.to(torch.uint8).T, layout.bits).T
    return tensors


def from_packed(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], scales and zero-points [out, groups]. Raises KeyError, ValueError: a tensor
    is missing or has another shape."""
    rows, columns = tensors["weight_shape"].tolist()
    packed, scale = tensors["weight_packed"], tensors["weight_scale"]
    check_shape("weight_packed", packed, (rows, words_for(columns, layout.bits)))
    codes = unpack(packed, layout.bits, columns)
    if layout.grid == "offset":
        check_shape("weight_offset", tensors["weight_offset"], (*scale.shape,))
        return codes, scale.float(), zeros_of(scale.float(), tensors["weight_offset"])
    if layout.grid == "symmetric":
        return codes, scale, torch.full(scale.shape, 2 ** (layout.bits - 1), dtype=torch.uint8)
    zero = tensors["weight_zero_point"]
    check_shape("weight_zero_point", zero, (words_for(rows, layout.bits), scale.shape[1]))
    return codes, scale, unpack(zero.T.contiguous(), layout.bits, rows).T


def compressed_tensors_config(
    model: nn.Module, layers: Collection[str], layout: Layout
) -> dict[str, Any]:
    """The `quantization_config` of config.json. `layers`: full names of the quantised linears."""
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    others = {name for group in layout.others for name in group.layers}
    alike = sorted({*layers} - linears - others)  # an embedding
    groups = {"group_0": _group(["Linear", *alike], layout)}
    for number, group in enumerate(layout.others, 1):
        groups[f"group_{number}"] = _group([*group.layers], layout.of(group.layers[0]))
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": sorted({"lm_head", *linears} - set(layers)),
        "config_groups": groups,
    }


def _group(targets: list[str], layout: Layout) -> dict[str, Any]:
    weights = {
        "num_bits": layout.bits,
        "type": "int",
        "symmetric": layout.grid == "symmetric",
        "strategy": "group" if layout.group_size else "channel",
        "group_size": layout.group_size or None,
        "dynamic": False,
    }
    about = {"targets": targets, "format": "pack-quantized", "input_activations": None}
    return about | {"weights": weights}
