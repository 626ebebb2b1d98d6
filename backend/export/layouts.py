"""Convert one quantised layer to the tensors of a format, and back. Lossless: scales and offsets
are numbers of the stored dtype already (`QuantGrid.stored`).

compressed-tensors, pack-quantized (signed codes q - 2^(n-1), stored with an offset)

    weight_packed       int32 [out, ceil(in n / 32)]      q along rows
    weight_scale        [out, groups]                     s
    weight_zero_point   int32 [ceil(out n / 32), groups]  z along columns; absent if symmetric
    weight_shape        int64 [2]

slimscope

    weight_packed, weight_scale, weight_shape   as compressed-tensors
    weight_offset       [out, groups]                     b = -s z, in the dtype of the scales

GPTQ

    qweight  int32 [in n / 32, out]       q along columns of W^T
    qzeros   int32 [groups, out n / 32]   z (gptq_v2) or z - 1 (gptq)
    scales   float16 [groups, out]
    g_idx    int32 [in]                   group of each input

AWQ (gemm; read only)

    qweight  int32 [in, out n / 32]       q along rows of W^T, in the order AWQ_ORDER
    qzeros   int32 [groups, out n / 32]   z, likewise
    scales   float16 [groups, out]

Where a GPTQ or compressed-tensors layer assigns inputs to groups in another order ("act-order"),
every input is read as a group of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backend.errors import ModelError
from backend.export.formats import Layout
from backend.export.packing import pack, unpack, words_for
from backend.quantization.grid import QuantizedWeight, offsets_of, quantized_from, zeros_of

Tensors = dict[str, Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # columns in the eight codes of a word, lowest bits first


def layer_tensors(layer: QuantizedWeight, layout: Layout, stored: torch.dtype) -> Tensors:
    """The tensors of a layer, by name suffix."""
    scale = layer.grid.scale.to(stored)
    if layout.format == "slimscope":
        return {
            "weight_packed": pack(layer.codes, layout.bits),
            "weight_scale": scale,
            "weight_offset": offsets_of(layer.grid.scale, layer.grid.zero).to(stored),
            "weight_shape": torch.tensor(layer.codes.shape),
        }
    zero = layer.grid.zero.to(torch.uint8)
    if layout.format == "compressed-tensors":
        tensors = {
            "weight_packed": pack(layer.codes, layout.bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor(layer.codes.shape),
        }
        if layout.grid != "symmetric":
            tensors["weight_zero_point"] = pack(zero.T, layout.bits).T
        return tensors
    columns = torch.arange(layer.codes.shape[1], dtype=torch.int32)
    return {
        "qweight": pack(layer.codes, layout.bits).T,
        "qzeros": pack(zero.T - _shift(layout), layout.bits),
        "scales": scale.T,
        "g_idx": columns // layer.group_size,
    }


def _shift(layout: Layout) -> int:
    """The offset that GPTQ subtracts from zero-points."""
    return 1 if layout.format == "gptq" else 0


def layer_from(name: str, tensors: Mapping[str, Tensor], layout: Layout) -> QuantizedWeight:
    """Restore a layer from its tensors.

    Raises:
        ModelError: bit width, group size or shapes are inconsistent.
    """
    readers = {
        "compressed-tensors": _from_packed,
        "slimscope": _from_offsets,
        "awq": _from_awq,
    }
    try:
        codes, scale, zero = readers.get(layout.format, _from_gptq)(tensors, layout)
    except KeyError as error:
        raise _inconsistent(name, f"it has no {error.args[0]}") from error
    except (RuntimeError, ValueError) as error:
        raise _inconsistent(name, str(error)) from error
    groups = codes.shape[1] // (layout.group_size or codes.shape[1])
    if scale.shape != (len(codes), groups) or codes.shape[1] % groups:
        raise _inconsistent(
            name,
            f"its scales {list(scale.shape)} do not match groups of {layout.group_size} of weights "
            f"{list(codes.shape)}",
        )
    try:
        scale, zero = _by_input(tensors, scale, zero)
    except ValueError as error:
        raise _inconsistent(name, str(error)) from error
    return quantized_from(name, layout.bits, {"codes": codes, "scale": scale, "zero": zero})


def _by_input(tensors: Mapping[str, Tensor], scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zero-points [out, groups]; [out, in] where neighbours do not share a group."""
    order, groups = tensors.get("g_idx", tensors.get("weight_g_idx")), scale.shape[1]
    if order is None:
        return scale, zero
    if int(order.min()) < 0 or int(order.max()) >= groups:
        raise ValueError(f"its inputs belong to groups {int(order.min())} to {int(order.max())}")
    neighbours = torch.arange(len(order), dtype=order.dtype) // (len(order) // groups)
    if torch.equal(order, neighbours):
        return scale, zero
    return scale[:, order.long()], zero[:, order.long()]


def _from_awq(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    columns, (groups, rows) = len(tensors["qweight"]), tensors["scales"].shape
    _check_shape(tensors["qweight"].shape, (columns, words_for(rows, layout.bits)), "qweight")
    _check_shape(tensors["qzeros"].shape, (groups, words_for(rows, layout.bits)), "qzeros")
    place = torch.tensor(AWQ_ORDER).argsort()
    codes, zero = (
        unpack(tensors[part], layout.bits, rows).view(count, -1, len(place))[..., place].flatten(1)
        for part, count in (("qweight", columns), ("qzeros", groups))
    )
    return codes.T.contiguous(), tensors["scales"].T, zero.T


def _from_offsets(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = tensors["weight_shape"].tolist()
    packed, scale = tensors["weight_packed"], tensors["weight_scale"].float()
    _check_shape(packed.shape, (rows, words_for(columns, layout.bits)), "weight_packed")
    _check_shape(tensors["weight_offset"].shape, (*scale.shape,), "weight_offset")
    return unpack(packed, layout.bits, columns), scale, zeros_of(scale, tensors["weight_offset"])


def _from_packed(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = tensors["weight_shape"].tolist()
    packed, scale = tensors["weight_packed"], tensors["weight_scale"]
    _check_shape(packed.shape, (rows, words_for(columns, layout.bits)), "weight_packed")
    zero = torch.full(scale.shape, 2 ** (layout.bits - 1), dtype=torch.uint8)
    if layout.grid != "symmetric":
        packed_zero = tensors["weight_zero_point"]
        _check_shape(
            packed_zero.shape, (words_for(rows, layout.bits), scale.shape[1]), "weight_zero_point"
        )
        zero = unpack(packed_zero.T.contiguous(), layout.bits, rows).T
    return unpack(packed, layout.bits, columns), scale, zero


def _from_gptq(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = tensors["scales"].shape[1], len(tensors["g_idx"])
    groups = len(tensors["scales"])
    _check_shape(tensors["qweight"].shape, (words_for(columns, layout.bits), rows), "qweight")
    _check_shape(tensors["qzeros"].shape, (groups, words_for(rows, layout.bits)), "qzeros")
    codes = unpack(tensors["qweight"].T.contiguous(), layout.bits, columns)
    zero = unpack(tensors["qzeros"], layout.bits, rows).T + _shift(layout)
    return codes, tensors["scales"].T, zero


def _check_shape(shape: Any, expected: tuple[int, int], what: str) -> None:
    if tuple(shape) != expected:
        raise ValueError(f"its {what} is {list(shape)}, not {list(expected)}")


def _inconsistent(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} cannot be read.",
        f"{why[0].upper()}{why[1:]}.",
        "Config and weights do not match; export the model again.",
        field="model",
    )
