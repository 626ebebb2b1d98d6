"""Weights in the layout of `kernels/cpp/interface.h`, and linear layers whose products the kernels
compute."""

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from backend.decoding.native.families import LANES
from backend.kernels import library as c
from backend.kernels.library import Kernels, kernels
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.quantization.packed_linear import RUN, PackedLinear, has_codes

BFLOAT16, SPARSE_BFLOAT16, INT4_2_4 = 0, 1, 24  # formats; codes: the number of their bits
WIDTHS = (2, 3, 4, 5, 6, 8)  # bits of codes
SPARSE = (SPARSE_BFLOAT16, INT4_2_4)
SPARSE_FROM = 0.45  # share of zeros from which leaving them out of 16-bit weights pays
LINE = 64  # bytes the decoder reads at once
HEAD_GROUP = 32  # inputs with one scale, in 8 bits
GROUPS = (256, 128, 64, RUN)  # inputs that are rounded to 8 bits with one scale
ALONE = 2**20  # weights that one thread multiplies before a second has started


class WeightLayout:
    """Lays out weights, and keeps what the structures point to, and threads to multiply with.
    `rounded`: linears that are not packed are rounded to 8 bits. `sparse`: the zeros of pruned
    linears are left out."""

    def __init__(self, kernels: Kernels, rounded: bool = False, sparse: bool = True) -> None:
        self._kernels, self._rounded, self._sparse = kernels, rounded, sparse
        self._kept: dict[int, Tensor] = {}  # by address
        self._parts: set[int] = set()  # addresses of the parts of matrices
        kernels.library.slimscope_acquire_threads()
        weakref.finalize(self, kernels.library.slimscope_release_threads)

    @property
    def size(self) -> int:
        """Bytes of the matrices, masks and scales included: what a pass reads."""
        return sum(self._kept[address].nbytes for address in self._parts)

    def matrix(self, *linears: Any) -> c.Matrix:
        """Linears [out, in] of the same input, one below the other; all as codes or none. Where
        their bits and groups differ, the widest and the smallest are those of all. Raises
        ValueError: their inputs differ or are no multiple of `LANES`, groups are no multiple of
        `RUN`, or scales of other shapes than the codes."""
        inputs = {(x.quantized.codes if has_codes(x) else x.weight).shape[1] for x in linears}
        if len(inputs) > 1 or not inputs or min(inputs) % LANES or not min(inputs):
            raise ValueError(f"{sorted(inputs)} inputs are not one multiple of {LANES}")
        if all(map(has_codes, linears)):
            return self._codes([x.quantized for x in linears], linears)
        fits = not min(inputs) % HEAD_GROUP
        return self.int8(*linears) if self._rounded and fits else self._dense(linears)

    def rows(self, matrix: c.Matrix, first: int, count: int) -> c.Matrix:
        """`count` outputs of a matrix from `first` on, multiples of `LANES`, in its memory."""
        groups = matrix.inputs // matrix.group
        steps = {  # bytes of a block of outputs
            # for one input; where zeros are left out, `starts` tells it
            "weights": matrix.inputs
            * {BFLOAT16: 32, SPARSE_BFLOAT16: 0, INT4_2_4: 6}.get(matrix.format, 2 * matrix.format),
            "masks": 2 * matrix.inputs,
            "starts": 8,
            "scales": 2 * LANES * groups,
            "zeros": 2 * LANES * groups,
            "bias": 4 * LANES,
        }
        part = c.Matrix.from_buffer_copy(matrix)
        part.outputs = count
        for name, step in steps.items():
            if address := getattr(matrix, name):
                setattr(part, name, address + first // LANES * step)
        return part

    def _dense(self, linears: Sequence[Any]) -> c.Matrix:
        halves = [x.weight.detach().bfloat16() for x in linears]  # a head is large enough once
        weight = (torch.cat(halves) if len(halves) > 1 else halves[0]).contiguous()
        outputs, inputs = weight.shape
        padded = -(-outputs // LANES) * LANES
        layout = torch.empty(padded * inputs, dtype=torch.bfloat16)
        self._kernels.pack_bf16(weight.data_ptr(), layout.data_ptr(), outputs, inputs)
        matrix = c.Matrix(BFLOAT16, padded, inputs, inputs, bias=self._bias(linears, padded))
        if not (self._sparse and self._leave_out_zeros(matrix, layout)):
            matrix.weights = self._part(layout)
        return matrix

    def _leave_out_zeros(self, matrix: c.Matrix, layout: Tensor) -> bool:
        """Let the matrix point to its weights without zeros; False if that would not pay."""
        if not self._kernels.sparse:
            return False
        if int(layout.count_nonzero()) > (1 - SPARSE_FROM) * layout.numel():
            return False
        masks = torch.empty(layout.numel() // 32, dtype=torch.uint32)
        starts = torch.empty(matrix.outputs // LANES, dtype=torch.int64)
        kept = torch.empty(layout.nbytes + LINE, dtype=torch.uint8)
        places = map(Tensor.data_ptr, (layout, masks, starts, kept))
        size = self._kernels.leave_out_zeros(*places, matrix.outputs, matrix.inputs)
        matrix.format = SPARSE_BFLOAT16
        matrix.masks, matrix.starts = self._part(masks), self._part(starts)
        matrix.weights = self._part(kept[: size + LINE].clone())  # of the last, a line is read
        return True

    def _codes(self, layers: list[QuantizedWeight], linears: Sequence[nn.Module]) -> c.Matrix:
        codes, inputs = torch.cat([x.codes for x in layers]), layers[0].codes.shape[1]
        bits = next(n for n in WIDTHS if n >= max(x.grid.bits for x in layers))
        shared = math.gcd(*(x.group_size for x in layers))
        if shared % RUN:
            raise ValueError(f"groups of {shared} inputs are no multiple of {RUN}")
        group = next(size for size in GROUPS if shared % size == 0)
        scale, zero = (
            torch.cat([part.repeat_interleave(x.group_size // group, 1) for x, part in parts])
            for parts in ([(x, x.grid.scale) for x in layers], [(x, x.grid.zero) for x in layers])
        )
        if {scale.shape, zero.shape} != {(len(codes), inputs // group)}:
            raise ValueError(f"scales {[*scale.shape]} are of other codes than {[*codes.shape]}")
        padding = 0, 0, 0, -len(codes) % LANES
        codes, scale = pad(codes, padding).contiguous(), pad(scale, padding)
        zero = pad(zero, padding, value=2 ** (bits - 1)) - 2 ** (bits - 1)
        matrix = c.Matrix(
            bits,
            len(codes),
            inputs,
            group,
            scales=self._part(_blocks(scale.T.bfloat16())),
            bias=self._bias(linears, len(codes)),
        )
        if zero.any() or not self._two_of_four(matrix, codes):
            layout = torch.empty(codes.numel() * bits // 8, dtype=torch.uint8)
            places = codes.data_ptr(), layout.data_ptr(), *codes.shape, bits
            self._kernels.pack_codes(*places)
            matrix.weights = self._part(layout)
            if zero.any():
                matrix.zeros = self._part(_blocks(zero.T.bfloat16()))
        return matrix

    def _two_of_four(self, matrix: c.Matrix, codes: Tensor) -> bool:
        """Let the matrix point to two codes of every four, in 3 bits a weight; False if the others
        are not 0, or all codes in 2 bits are fewer bytes."""
        bits, usable = matrix.format, self._kernels.two_of_four
        if not (self._sparse and usable and bits in (3, 4)):
            return False
        moved = codes + (8 - 2 ** (bits - 1))
        layout = torch.empty(codes.numel() * 3 // 8, dtype=torch.uint8)
        places = moved.data_ptr(), layout.data_ptr(), *codes.shape
        if not self._kernels.pack_2_4(*places):
            return False
        matrix.format, matrix.weights = INT4_2_4, self._part(layout)
        return True

    def int8(self, *linears: Any) -> c.Matrix:
        """Rounded to nearest, symmetric, in groups of `HEAD_GROUP` inputs."""
        weight = torch.cat([x.weight for x in linears]).detach().float()
        groups = weight.view(len(weight), -1, HEAD_GROUP)
        scale = (groups.abs().amax(-1) / 127).clamp_(min=1e-30).bfloat16().float()
        grid = QuantGrid(8, scale, torch.full_like(scale, 128))
        return self._codes([QuantizedWeight(grid, grid.codes(weight).byte())], linears)

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
        address = self.own(tensor)
        self._parts.add(address)
        return address

    def own(self, tensor: Tensor) -> int:
        """Its address; it is kept as long as this object, or until it is released."""
        self._kept[tensor.data_ptr()] = tensor
        return tensor.data_ptr()

    def release(self, *addresses: int | None) -> None:
        """Forget what lies there: no structure may point to it any more, and no pass read it."""
        for address in addresses:
            if address is not None:
                self._parts.discard(address)
                self._kept.pop(address, None)

    def release_matrix(self, matrix: c.Matrix) -> None:
        """Forget all parts of a matrix, of which `rows` may be in use no longer, either."""
        parts = ("weights", "masks", "starts", "scales", "zeros", "bias")
        self.release(*(getattr(matrix, part) for part in parts))


def _blocks(table: Tensor) -> Tensor:
    """[groups, outputs] -> [outputs / 16, groups, 16]."""
    return table.T.reshape(-1, LANES, table.shape[0]).transpose(1, 2).contiguous()


class NativeLinear(nn.Module):
    """A linear [..., in] -> [..., out] in float32, of weights in 4 bits, 8 bits or bfloat16. Raises
    CompilerError: the decoder cannot be built here. ValueError: its inputs are no multiple of
    `LANES`.

    Args:
        instructions: kernels that multiply; None: the best.
        rounded: an `nn.Linear` is rounded to 8 bits.
        sparse: zeros are left out where that pays; the attribute says where they are.
    """

    def __init__(
        self,
        linear: nn.Linear | PackedLinear,
        instructions: Kernels | None = None,
        rounded: bool = False,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        self._kernels = instructions or kernels()
        self._layout = WeightLayout(self._kernels, rounded, sparse)
        self._matrix = self._layout.matrix(linear)
        self.out_features = linear.out_features
        self.sparse = self._matrix.format in SPARSE
        self._large = self._matrix.outputs * self._matrix.inputs > ALONE

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self._matrix.inputs:
            raise ValueError(f"the inputs {[*x.shape]} are not {self._matrix.inputs} wide")
        rows = x.reshape(-1, self._matrix.inputs).float().contiguous()
        y = torch.empty(len(rows), self._matrix.outputs, dtype=torch.float32)
        threads = torch.get_num_threads() if self._large else 1
        places = self._matrix, rows.data_ptr(), y.data_ptr()
        c.check(self._kernels.linear(*places, len(rows), threads))
        return y[:, : self.out_features].view(*x.shape[:-1], -1)
