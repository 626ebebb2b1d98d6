"""Linear layers on packed weights, using torch's int4 CPU operator.

    y = x What^T,   What_ij = (p_ij - 8) s_ik + b_ik,   p = q + d in 0 .. 15,   b = (8 - z - d) s

The operator takes a scale and a float offset per group, so any 2-, 3- or 4-bit grid fits into its
4-bit container, its zero-points whole or not. With 2 and 3 bits, and whenever z = 8, the shift d
makes b zero where z is whole, and avoids its rounding error. The operator computes in bfloat16. Its
buffer layout depends on the processor, so the buffer is built when a model is loaded and never
saved.

Up to `FEW` rows the operator is faster than unpacking the weights and multiplying densely; above,
that is done. For it the codes are stored a second time, two per byte: 8 bits per weight in memory
in total.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backend.quantization.grid import QuantizedWeight

OPERATOR = "_weight_int4pack_mm_for_cpu"
FEW = 64  # rows of x; the two cross at 70 to 130 rows for layers 576 to 2048 wide (AMD EPYC)
GROUPS = (256, 128, 64, 32)  # group sizes of the operator
MULTIPLE = 16  # the number of outputs must be a multiple of it
MIDDLE, TOP = 8, 15  # middle and maximum of the 4-bit codes
DTYPE = torch.bfloat16


def obstacle(layer: QuantizedWeight) -> str:
    """Why a layer cannot run packed; empty if it can."""
    rows = len(layer.codes)
    if not hasattr(torch.ops.aten, OPERATOR):
        return f"torch {torch.__version__} has no int4 operator for CPUs"
    if layer.codes.device.type != "cpu":
        return "the int4 operator runs on CPUs only"
    if layer.grid.bits > 4:
        return f"the int4 operator supports up to 4 bits, not {layer.grid.bits}"
    if rows % MULTIPLE:
        return f"{rows} outputs are not a multiple of {MULTIPLE}"
    if not _operator_group(layer.group_size):
        return f"the group size {layer.group_size} is not a multiple of {GROUPS[-1]}"
    return ""


def _operator_group(size: int) -> int:
    """The largest group size of the operator that divides `size`; 0: none does."""
    return next((group for group in GROUPS if size % group == 0), 0)


class PackedLinear(nn.Module):
    """A linear on packed weights, with bfloat16 inputs and outputs. `obstacle(layer)` is empty."""

    def __init__(self, layer: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.codes.shape
        self.group = _operator_group(layer.group_size)
        scale, zero = layer.grid.scale, layer.grid.zero
        shift = (MIDDLE - zero).round().clamp(0, TOP - layer.grid.top)
        offset = (MIDDLE - zero - shift) * scale
        each = torch.stack([scale, offset], -1).repeat_interleave(layer.group_size // self.group, 1)
        self.scale = nn.Buffer(each.transpose(0, 1).to(DTYPE).contiguous(), persistent=False)
        codes = layer.codes.view(*scale.shape, -1) + shift.byte().unsqueeze(-1)
        codes = codes.view(layer.codes.shape)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        self.packed = nn.Buffer(packed, persistent=False)
        pairs = codes[:, ::2] | codes[:, 1::2] << 4
        self.pairs = nn.Buffer(pairs.contiguous(), persistent=False)
        cast = None if bias is None else bias.detach().to(DTYPE)
        self.bias = None if cast is None else nn.Parameter(cast, requires_grad=False)

    def dense(self) -> Tensor:
        """The weights [out, in], bfloat16."""
        codes = torch.stack([self.pairs & 15, self.pairs >> 4], -1)
        levels = codes.view(self.out_features, -1, self.group).to(DTYPE).sub_(MIDDLE)
        scale, offset = self.scale.transpose(0, 1).unsqueeze(2).unbind(-1)  # [out, groups, 1]
        return levels.mul_(scale).add_(offset).view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if len(rows) > FEW:
            return linear(x, self.dense(), self.bias)
        rows = rows.contiguous()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scale)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def to_bfloat16(model: PreTrainedModel) -> None:
    """Cast all parameters; buffers stay unchanged, since rotary frequencies are float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPE)


def pack_model(model: PreTrainedModel, layers: Mapping[str, QuantizedWeight]) -> dict[str, str]:
    """Replace `layers` in `model`, which becomes bfloat16: packed if supported, else dense.
    Returns name -> reason for the dense ones."""
    to_bfloat16(model)
    dense, head = dict[str, str](), model.get_output_embeddings()
    for name, layer in layers.items():
        module = model.get_submodule(name)
        why = obstacle(layer) or ("" if isinstance(module, nn.Linear) else "it is not an nn.Linear")
        if isinstance(module, nn.Embedding) or module is head:
            why = "embedding and head are expanded to 16 bits"
        if why:
            weight = layer.dense().T if isinstance(module, Conv1D) else layer.dense()
            module.get_parameter("weight").data.copy_(weight)
            dense[name] = why
        else:
            bias = dict(module.named_parameters()).get("bias")
            model.set_submodule(name, PackedLinear(layer, bias))
    return dense
