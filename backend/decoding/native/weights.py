"""Weights in the layout of `cpp/matrix.h`."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backend.decoding.native import structures as c
from backend.decoding.native.families import LANES
from backend.quantization.packed_linear import PackedLinear

BFLOAT16, INT8, INT4, SPARSE_BFLOAT16, INT4_2_4 = range(5)
SPARSE = (SPARSE_BFLOAT16, INT4_2_4)
SPARSE_FROM = 0.45  # share of zeros from which leaving them out of 16-bit weights pays
LINE = 64  # bytes the decoder reads at once
HEAD_GROUP = 32  # inputs with one scale, in 8 bits
BLOCK_BYTES: dict[int, Callable[[int], int]] = {  # of the weights of a block, by its inputs
    BFLOAT16: lambda inputs: 32 * inputs,
    INT8: lambda inputs: 16 * inputs,
    INT4: lambda inputs: 8 * inputs,
    SPARSE_BFLOAT16: lambda inputs: 0,  # where it begins is told by `starts`
    INT4_2_4: lambda inputs: 6 * inputs,
}


class WeightLayout:
    """Lays out weights, and keeps what the structures point to, and threads to multiply with.

    Args:
        rounded: linears that are not packed are rounded to 8 bits.
        sparse: the zeros of pruned linears are left out.

    Attributes:
        size: bytes of the matrices, masks and scales included: what a pass reads.
    """

    def __init__(self, library: ctypes.CDLL, rounded: bool = False, sparse: bool = True) -> None:
        self._library, self._rounded, self._sparse = library, rounded, sparse
        self._kept: list[Tensor] = []
        self.size = 0
        library.slimscope_acquire_threads()
        weakref.finalize(self, library.slimscope_release_threads)

    def matrix(self, *linears: nn.Module) -> c.Matrix:
        """Linears [out, in] of the same input, one below the other; all in 4 bits or none.

        Raises:
            ValueError: their inputs differ or are no multiple of `LANES`, or packed ones have
                other tables than their shapes say.
        """
        inputs = {_inputs(linear) for linear in linears}
        if len(inputs) > 1 or not inputs or min(inputs) % LANES or not min(inputs):
            raise ValueError(f"{sorted(inputs)} inputs are not one multiple of {LANES}")
        packed = [linear for linear in linears if isinstance(linear, PackedLinear)]
        if len(packed) == len(linears) and len({x.group for x in packed}) == 1:
            return self._int4(packed)
        fits = not min(inputs) % HEAD_GROUP
        return self.int8(*linears) if self._rounded and fits else self._dense(linears)

    def rows(self, matrix: c.Matrix, first: int, count: int) -> c.Matrix:
        """`count` outputs of a matrix from `first` on, multiples of `LANES`, in its memory."""
        groups = matrix.inputs // matrix.group
        steps = {  # bytes of a block of outputs
            "weights": BLOCK_BYTES[matrix.format](matrix.inputs), "masks": 2 * matrix.inputs,
            "starts": 8, "scales": 2 * LANES * groups, "offsets": 2 * LANES * groups,
            "bias": 4 * LANES,
        }  # fmt: skip
        part = c.Matrix.from_buffer_copy(matrix)
        part.outputs = count
        for name, step in steps.items():
            if address := getattr(matrix, name):
                setattr(part, name, address + first // LANES * step)
        return part

    def _dense(self, linears: Sequence[nn.Module]) -> c.Matrix:
        weight = torch.cat([_weight(x) for x in linears]).detach().bfloat16().contiguous()
        outputs, inputs = weight.shape
        padded = -(-outputs // LANES) * LANES
        layout = torch.empty(padded * inputs, dtype=torch.bfloat16)
        self._library.slimscope_pack_bf16(weight.data_ptr(), layout.data_ptr(), outputs, inputs)
        matrix = c.Matrix(BFLOAT16, padded, inputs, inputs, bias=self._bias(linears, padded))
        if not (self._sparse and self._leave_out_zeros(matrix, layout)):
            matrix.weights = self._part(layout)
        return matrix

    def _leave_out_zeros(self, matrix: c.Matrix, layout: Tensor) -> bool:
        """Let the matrix point to its weights without zeros; False if that would not pay."""
        if not self._library.slimscope_supports(SPARSE_BFLOAT16):
            return False
        if int(layout.count_nonzero()) > (1 - SPARSE_FROM) * layout.numel():
            return False
        masks = torch.empty(layout.numel() // 32, dtype=torch.uint32)
        starts = torch.empty(matrix.outputs // LANES, dtype=torch.int64)
        kept = torch.empty(layout.nbytes + LINE, dtype=torch.uint8)
        places = map(Tensor.data_ptr, (layout, masks, starts, kept))
        size = self._library.slimscope_leave_out_zeros(*places, matrix.outputs, matrix.inputs)
        matrix.format = SPARSE_BFLOAT16
        matrix.masks, matrix.starts = self._part(masks), self._part(starts)
        matrix.weights = self._part(kept[: size + LINE].clone())  # of the last, a line is read
        return True

    def _int4(self, linears: list[PackedLinear]) -> c.Matrix:
        codes = torch.cat([_codes(linear) for linear in linears])
        outputs, inputs = codes.shape
        scale, offset = torch.cat([linear.scale for linear in linears], 1).unbind(-1)
        if outputs % LANES or scale.shape != (inputs / linears[0].group, outputs):
            raise ValueError(f"{[*scale.shape]} scales are not those of {[*codes.shape]} codes")
        matrix = c.Matrix(
            INT4, outputs, inputs, linears[0].group, scales=self._part(_blocks(scale)),
            offsets=self._part(_blocks(offset)) if offset.any() else None,
            bias=self._bias(linears, outputs),
        )  # fmt: skip
        layout = torch.empty(codes.numel() // 2, dtype=torch.uint8)
        if self._sparse and not matrix.offsets and self._library.slimscope_supports(INT4_2_4):
            sparse = layout[: codes.numel() * 3 // 8].clone()  # of every four codes, two
            if self._library.slimscope_pack_int4_2_4(
                codes.data_ptr(), sparse.data_ptr(), outputs, inputs
            ):
                matrix.format, layout = INT4_2_4, sparse
        if matrix.format == INT4:
            self._library.slimscope_pack_int4(codes.data_ptr(), layout.data_ptr(), outputs, inputs)
        matrix.weights = self._part(layout)
        return matrix

    def int8(self, *linears: nn.Module) -> c.Matrix:
        """Rounded to nearest, symmetric, in groups of `HEAD_GROUP` inputs."""
        weight = torch.cat([_weight(x) for x in linears]).detach().float()
        outputs, inputs = weight.shape
        padded = -(-outputs // LANES) * LANES
        weight = torch.cat([weight, weight.new_zeros(padded - outputs, inputs)])
        groups = weight.view(padded, -1, HEAD_GROUP)
        scale = (groups.abs().amax(-1) / 127).clamp_(min=1e-30).bfloat16()
        codes = (groups / scale.float().unsqueeze(-1)).round_().add_(128).clamp_(0, 255).byte()
        layout = torch.empty(padded * inputs, dtype=torch.uint8)
        self._library.slimscope_pack_int8(codes.data_ptr(), layout.data_ptr(), padded, inputs)
        scales, bias = self._part(_blocks(scale.T)), self._bias(linears, padded)
        return c.Matrix(
            INT8, padded, inputs, HEAD_GROUP, self._part(layout), scales=scales, bias=bias
        )

    def _bias(self, linears: Sequence[nn.Module], padded: int) -> int | None:
        biases = [getattr(linear, "bias", None) for linear in linears]
        if all(bias is None for bias in biases):
            return None
        whole, start = torch.zeros(padded, dtype=torch.float32), 0
        linear: Any
        for linear, bias in zip(linears, biases, strict=True):
            end = start + linear.out_features
            if bias is not None:
                whole[start:end] = bias.detach()
            start = end
        return self.own(whole)

    def _part(self, tensor: Tensor) -> int:
        """Address of a part of a matrix, which is kept."""
        self.size += tensor.nbytes
        return self.own(tensor)

    def own(self, tensor: Tensor) -> int:
        """Its address; it is kept as long as this object."""
        self._kept.append(tensor)
        return tensor.data_ptr()


def _inputs(linear: Any) -> int:
    packed = isinstance(linear, PackedLinear)
    return int(2 * linear.pairs.shape[1] if packed else linear.weight.shape[1])


def _weight(linear: Any) -> Tensor:
    weight: Tensor = linear.dense() if isinstance(linear, PackedLinear) else linear.weight
    return weight


def _codes(linear: PackedLinear) -> Tensor:
    """The codes 0 to 15 [out, in]."""
    pairs = torch.stack([linear.pairs & 15, linear.pairs >> 4], -1)
    return pairs.view(linear.out_features, -1).contiguous()


def _blocks(table: Tensor) -> Tensor:
    """[groups, outputs] -> [outputs / 16, groups, 16]."""
    return table.T.reshape(-1, LANES, table.shape[0]).transpose(1, 2).contiguous()
