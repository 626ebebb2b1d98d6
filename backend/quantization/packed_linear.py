"""Linear layers on packed weights, using torch's int4 CPU operator.

    y = x What^T,   What_ij = (p_ij - 8) s_ik + b_ik,   p = q + d in 0 .. 15,   b = (8 - z - d) s

The operator takes a scale and a float offset per group, so any 2-, 3- or 4-bit grid fits into its
4-bit container, its zero-points whole or not. With 2 and 3 bits, and whenever z = 8, the shift d
makes b zero where z is whole, and avoids its rounding error. The operator computes in bfloat16. Its
buffer layout depends on the processor, so the buffer is built when a model is loaded and never
saved.

The native decoder reads the codes q themselves, in n bits. Those of other layers, in 5 to 8 bits
and of embedding and head, are not kept beside their weights in bfloat16: the weights lie on their
grid, by which the codes are found again (`codes_of`).

Up to `FEW` rows the operator is faster than unpacking the weights and multiplying densely; above,
that is done. For it the codes are stored a second time, two per byte: 8 bits per weight in memory
in total.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backend.quantization.grid import QuantGrid, QuantizedWeight

OPERATOR = "_weight_int4pack_mm_for_cpu"
FEW = 64  # rows of x; the two cross at 70 to 130 rows for layers 576 to 2048 wide (AMD EPYC)
GROUPS = (256, 128, 64, 32)  # group sizes of the operator
MULTIPLE = 16  # the number of outputs must be a multiple of it
MIDDLE, TOP = 8, 15  # middle and maximum of the 4-bit codes
DTYPE = torch.bfloat16
GRID = "quant_grid"  # attribute of a dense module whose weights lie on one


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
        scale, zero, self.bits = layer.grid.scale, layer.grid.zero, layer.grid.bits
        shift = _shift(layer.grid)
        offset = (MIDDLE - zero - shift) * scale
        each = torch.stack([scale, offset], -1).repeat_interleave(layer.group_size // self.group, 1)
        whole = zero.byte() if torch.equal(zero, zero.byte().float()) else zero
        points = whole.repeat_interleave(layer.group_size // self.group, 1)
        self.zero = nn.Buffer(points, persistent=False)  # [out, groups]
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

    def quantized(self) -> QuantizedWeight:
        """Codes and grid, with groups of the operator; `ValueError` if its tables do not fit."""
        out, size = self.out_features, self.in_features
        shapes = self.pairs.shape, self.scale.shape, self.zero.shape
        if shapes != ((out, size // 2), (size // self.group, out, 2), (out, size // self.group)):
            raise ValueError(f"tables {[[*shape] for shape in shapes]} are of another layer")
        grid = QuantGrid(self.bits, self.scale[..., 0].T.float(), self.zero.float())
        codes = torch.stack([self.pairs & 15, self.pairs >> 4], -1).view(out, grid.groups, -1)
        return QuantizedWeight(grid, (codes - _shift(grid).byte().unsqueeze(-1)).view(out, size))

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


def _shift(grid: QuantGrid) -> Tensor:
    """d, from codes to those of the operator."""
    return (MIDDLE - grid.zero).round().clamp(0, TOP - grid.top)


def has_codes(module: nn.Module) -> bool:
    """Whether the weights of a module are codes, or lie on a grid of which they are found again."""
    return isinstance(module, PackedLinear) or hasattr(module, GRID)


def codes_of(module: Any) -> QuantizedWeight:
    """Codes and grid of a module that `has_codes`."""
    if isinstance(module, PackedLinear):
        return module.quantized()
    grid: QuantGrid = getattr(module, GRID)
    return QuantizedWeight(grid, grid.codes(module.weight.detach()).byte())


def keep_grid(module: Any, layer: QuantizedWeight) -> bool:
    """Remember the grid of the weights of a module; False if they would not give the codes back, or
    no kernel reads them."""
    setattr(module, GRID, layer.grid)
    known = not layer.group_size % GROUPS[-1] and layer.basis.plain
    if known and torch.equal(codes_of(module).codes, layer.codes):
        return True
    delattr(module, GRID)
    return False


def pack_model(model: PreTrainedModel, layers: Mapping[str, QuantizedWeight]) -> dict[str, str]:
    """Replace `layers` in `model`, which becomes bfloat16: packed if supported, else dense, of
    which the native decoder reads the codes where it can. Returns name -> reason for the dense."""
    to_bfloat16(model)
    dense = dict[str, str]()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(head, "weight", None) is getattr(embedding, "weight", None)
    for name, layer in layers.items():
        module = model.get_submodule(name)
        in_out, outside = isinstance(module, Conv1D), module in (embedding, head)
        why = "it is not an nn.Linear" if in_out else obstacle(layer)
        if outside:
            why = "embedding and head are expanded to 16 bits"
        if not why:
            bias = dict(module.named_parameters()).get("bias")
            model.set_submodule(name, PackedLinear(layer, bias))
            continue
        weight = layer.dense().T if in_out else layer.dense()
        module.get_parameter("weight").data.copy_(weight)
        places = (embedding, head) if outside and tied else (module,)
        read = not in_out and all(keep_grid(place, layer) for place in places)
        dense[name] = f"{why}; the native decoder reads their codes" if read else why
    return dense
