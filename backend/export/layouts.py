"""Layouts of packed weights: codes in 32-bit words, and the stored tensors of a layer.

n-bit codes are packed without gaps, lowest bits first, so 32 codes take exactly n words.
compressed-tensors packs weights along rows, GPTQ along columns; 3-bit codes take 3 bits in both.

compressed-tensors, pack-quantized (signed codes q - 2^(n-1), stored with an offset)

    weight_packed       int32 [out, ceil(in n / 32)]      q along rows
    weight_scale        [out, groups]                     s
    weight_zero_point   int32 [ceil(out n / 32), groups]  z along columns; absent if symmetric
    weight_shape        int64 [2]

slimscope (ours), the same tensors, and for a grid with offsets

    weight_offset       [out, groups]                     b = -s z, in the dtype of the scales

GPTQ, codes in columns of W^T

    qweight  int32 [in n / 32, out]       q along columns of W^T
    qzeros   int32 [groups, out n / 32]   z (gptq_v2) or z - 1 (gptq)
    scales   float16 [groups, out]
    g_idx    int32 [in]                   group of each input

AWQ (gemm; read only)

    qweight  int32 [in, out n / 32]       q along rows of W^T, in the order AWQ_ORDER
    qzeros   int32 [groups, out n / 32]   z, likewise
    scales   float16 [groups, out]"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backend.export.formats import Layout
from backend.models.sources.quantized import WORD_BITS
from backend.quantization.grid import QuantizedWeight, offsets_of, zeros_of

MASK = 2**WORD_BITS - 1
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # columns of the eight codes of a word, lowest bits first


def words_for(count: int, bits: int) -> int:
    """Return the number of words for `count` codes."""
    return math.ceil(count * bits / WORD_BITS)


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise `ValueError` unless a tensor has the expected shape."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"its {name} is {list(tensor.shape)}, not {list(expected)}")


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes, uint8 [rows, columns] in 0 .. 2^bits - 1, into words, int32 [rows, ceil(columns *
    bits / 32)]."""
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % WORD_BITS)).contiguous()
    runs = padded.view(rows, -1, WORD_BITS).long()  # each becomes `bits` words
    words = runs.new_zeros(rows, runs.shape[1], bits)
    for i in range(WORD_BITS):
        word, shift = divmod(i * bits, WORD_BITS)
        words[..., word] |= (runs[..., i] << shift) & MASK
        if shift + bits > WORD_BITS:
            words[..., word + 1] |= runs[..., i] >> (WORD_BITS - shift)
    words = torch.where(words > MASK >> 1, words - 2**WORD_BITS, words)
    return words.int().view(rows, -1)[:, : words_for(columns, bits)].contiguous()


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """Unpack words, int32 [rows, ceil(columns * bits / 32)], into codes, uint8 [rows, columns]."""
    rows, top = len(words), 2**bits - 1
    padded = torch.nn.functional.pad(words, (0, -words.shape[1] % bits)).contiguous()
    runs = padded.view(rows, -1, bits).long() & MASK
    codes = torch.empty(rows, runs.shape[1], WORD_BITS, dtype=torch.uint8, device=words.device)
    for i in range(WORD_BITS):
        word, shift = divmod(i * bits, WORD_BITS)
        code = runs[..., word] >> shift
        if shift + bits > WORD_BITS:
            code |= runs[..., word + 1] << (WORD_BITS - shift)
        codes[..., i] = (code & top).byte()
    return codes.view(rows, -1)[:, :columns].contiguous()


def packed_tensors(layer: QuantizedWeight, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a layer in compressed-tensors or slimscope format, by name suffix."""
    tensors = {
        "weight_packed": pack(layer.codes, layout.bits),
        "weight_scale": layer.grid.scale.to(dtype),
        "weight_shape": torch.tensor(layer.codes.shape),
    }
    if layout.grid == "offset":
        tensors["weight_offset"] = offsets_of(layer.grid.scale, layer.grid.zero).to(dtype)
    elif layout.grid != "symmetric":
        tensors["weight_zero_point"] = pack(layer.grid.zero.to(torch.uint8).T, layout.bits).T
    return tensors


def from_packed(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes [out, in], scales and zero-points [out, groups] of a layer in compressed-tensors
    or slimscope format.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has the wrong shape.
    """
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
    """Return the `quantization_config` of config.json. `layers`: full names of the quantized
    layers."""
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    special = {name for group in layout.others for name in group.layers}
    embeddings = sorted({*layers} - linears - special)  # with the settings of most linears
    groups = {"group_0": _group(["Linear", *embeddings], layout)}
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
    group = {"targets": targets, "format": "pack-quantized", "input_activations": None}
    return group | {"weights": weights}


def gptq_tensors(layer: QuantizedWeight, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a layer in GPTQ format, by name suffix."""
    zero = layer.grid.zero.to(torch.uint8)
    columns = torch.arange(layer.codes.shape[1], dtype=torch.int32)
    return {
        "qweight": pack(layer.codes, layout.bits).T,
        "qzeros": pack(zero.T - _zero_offset(layout), layout.bits),
        "scales": layer.grid.scale.to(dtype).T,
        "g_idx": columns // layer.group_size,
    }


def _zero_offset(layout: Layout) -> int:
    """Return the number that the first version of the GPTQ format subtracts from zero-points."""
    return 1 if layout.format == "gptq" else 0


def from_gptq(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes [out, in], scales and zero-points [out, groups] of a layer in GPTQ format.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has the wrong shape.
    """
    rows, columns = tensors["scales"].shape[1], len(tensors["g_idx"])
    groups = len(tensors["scales"])
    check_shape("qweight", tensors["qweight"], (words_for(columns, layout.bits), rows))
    check_shape("qzeros", tensors["qzeros"], (groups, words_for(rows, layout.bits)))
    codes = unpack(tensors["qweight"].T.contiguous(), layout.bits, columns)
    zero = unpack(tensors["qzeros"], layout.bits, rows).T + _zero_offset(layout)
    return codes, tensors["scales"].T, zero


def from_awq(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes [out, in], scales and zero-points [out, groups] of a layer in AWQ format. Raises
    the errors of `from_gptq`."""
    columns, (groups, rows) = len(tensors["qweight"]), tensors["scales"].shape
    check_shape("qweight", tensors["qweight"], (columns, words_for(rows, layout.bits)))
    check_shape("qzeros", tensors["qzeros"], (groups, words_for(rows, layout.bits)))
    order = torch.tensor(AWQ_ORDER).argsort()
    codes, zero = (
        unpack(tensors[part], layout.bits, rows).view(count, -1, len(order))[..., order].flatten(1)
        for part, count in (("qweight", columns), ("qzeros", groups))
    )
    return codes.T.contiguous(), tensors["scales"].T, zero.T


def gptq_config(layout: Layout) -> dict[str, Any]:
    """Return the `quantization_config` of config.json."""
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
