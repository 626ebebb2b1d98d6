"""Weights in the layout of `kernels/cpp/interface.h`, and linear layers that use the kernels."""

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

BFLOAT16, SPARSE_BFLOAT16, INT4_2_4 = 0, 1, 24  # formats; a code format is its number of bits
WIDTHS = (2, 3, 4, 5, 6, 8)  # supported bits per code
SPARSE = (SPARSE_BFLOAT16, INT4_2_4)
SPARSE_FROM = 0.45  # minimum share of zeros for which sparse 16-bit weights are faster
LINE = 64  # bytes per read of the kernels
HEAD_GROUP = 32  # group size of weights that are rounded to 8 bits
GROUPS = (256, 128, 64, RUN)  # supported group sizes, which the rounded inputs share
ALONE = 2**20  # number of weights up to which a second thread would start too late


class WeightLayout:
    """Packs weights; owns the memory that the C structures point to, and keeps the threads of the
    kernels alive.

    Args:
        kernels: kernels to use.
        rounded: round linears that are not packed to 8 bits.
        sparse: store pruned linears without zeros if this is faster.
    """

    def __init__(self, kernels: Kernels, rounded: bool = False, sparse: bool = True) -> None:
        self._kernels, self._rounded, self._sparse = kernels, rounded, sparse
        self._tensors: dict[int, Tensor] = {}  # address -> tensor
        self._parts: set[int] = set()  # addresses of tensors that belong to matrices
        kernels.library.slimscope_acquire_threads()
        weakref.finalize(self, kernels.library.slimscope_release_threads)

    @property
    def size(self) -> int:
        """Bytes of the matrices that a pass reads, including masks and scales."""
        return sum(self._tensors[address].nbytes for address in self._parts)

    def matrix(self, *linears: Any) -> c.Matrix:
        """Pack linears [out, in] with the same input into one matrix, stacked.

        The matrix has codes only if all linears have codes. It then uses the largest number of bits
        and the smallest group size.

        Raises:
            ValueError: the numbers of inputs differ or are no multiple of `LANES`, a group size is
                no multiple of `RUN`, or the shapes of scales and codes do not match.
        """
        inputs = {(x.quantized.codes if has_codes(x) else x.weight).shape[1] for x in linears}
        if len(inputs) > 1 or not inputs or min(inputs) % LANES or not min(inputs):
            raise ValueError(
                f"linears need one number of inputs, a multiple of {LANES}, not {sorted(inputs)}"
            )
        if all(map(has_codes, linears)):
            return self._codes([x.quantized for x in linears], linears)
        fits = not min(inputs) % HEAD_GROUP
        return self.int8(*linears) if self._rounded and fits else self._dense(linears)

    def rows(self, matrix: c.Matrix, first: int, count: int) -> c.Matrix:
        """Return a view of the outputs [first, first + count) of a matrix; multiples of `LANES`."""
        groups = matrix.inputs // matrix.group
        strides = {  # bytes per block of outputs
            # bytes per input and block; 0 for sparse weights, whose offsets are in `starts`
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
        for name, stride in strides.items():
            if address := getattr(matrix, name):
                setattr(part, name, address + first // LANES * stride)
        return part

    def _dense(self, linears: Sequence[Any]) -> c.Matrix:
        halves = [
            x.weight.detach().bfloat16() for x in linears
        ]  # a single linear, such as a head, is not copied
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
        """Make a matrix sparse; return False if that would not be faster."""
        if not self._kernels.bfloat16:
            return False
        # Integers, the values without their signs, are counted in a tenth of the time.
        magnitudes = layout.view(torch.int16) & 0x7FFF
        if int(magnitudes.count_nonzero()) > (1 - SPARSE_FROM) * layout.numel():
            return False
        masks = torch.empty(layout.numel() // 32, dtype=torch.uint32)
        starts = torch.empty(matrix.outputs // LANES, dtype=torch.int64)
        nonzero = torch.empty(layout.nbytes + LINE, dtype=torch.uint8)
        pointers = map(Tensor.data_ptr, (layout, masks, starts, nonzero))
        size = self._kernels.leave_out_zeros(*pointers, matrix.outputs, matrix.inputs)
        matrix.format = SPARSE_BFLOAT16
        matrix.masks, matrix.starts = self._part(masks), self._part(starts)
        matrix.weights = self._part(nonzero[: size + LINE].clone())  # the last read is a whole line
        return True

    def _codes(self, layers: list[QuantizedWeight], linears: Sequence[nn.Module]) -> c.Matrix:
        codes, inputs = torch.cat([x.codes for x in layers]), layers[0].codes.shape[1]
        bits = next(n for n in WIDTHS if n >= max(x.grid.bits for x in layers))
        shared = math.gcd(*(x.group_size for x in layers))
        if shared % RUN:
            raise ValueError(f"the group size {shared} is no multiple of {RUN}")
        group = next(size for size in GROUPS if shared % size == 0)
        scale, zero = (
            torch.cat([part.repeat_interleave(x.group_size // group, 1) for x, part in parts])
            for parts in ([(x, x.grid.scale) for x in layers], [(x, x.grid.zero) for x in layers])
        )
        if {scale.shape, zero.shape} != {(len(codes), inputs // group)}:
            raise ValueError(f"scales {[*scale.shape]} do not match codes {[*codes.shape]}")
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
            pointers = codes.data_ptr(), layout.data_ptr()
            self._kernels.pack_codes(*pointers, *codes.shape, bits)
            matrix.weights = self._part(layout)
            if zero.any():
                matrix.zeros = self._part(_blocks(zero.T.bfloat16()))
        return matrix

    def _two_of_four(self, matrix: c.Matrix, codes: Tensor) -> bool:
        """Pack 2:4 codes, at 3 bits per weight. Returns False if the codes are not 2:4, or their
        number of bits is not 3 or 4; dense codes of 2 bits take fewer bytes."""
        bits, usable = matrix.format, self._kernels.two_of_four
        if not (self._sparse and usable and bits in (3, 4)):
            return False
        shifted = codes + (8 - 2 ** (bits - 1))  # the zero-point becomes 8
        layout = torch.empty(codes.numel() * 3 // 8, dtype=torch.uint8)
        if not self._kernels.pack_2_4(shifted.data_ptr(), layout.data_ptr(), *codes.shape):
            return False
        matrix.format, matrix.weights = INT4_2_4, self._part(layout)
        return True

    def int8(self, *linears: Any) -> c.Matrix:
        """Pack linears in 8 bits: rounded to nearest on a symmetric grid, in groups of `HEAD_GROUP`
        inputs."""
        weight = torch.cat([x.weight for x in linears]).detach().float()
        groups = weight.view(len(weight), -1, HEAD_GROUP)
        scale = (groups.abs().amax(-1) / 127).clamp_(min=1e-30).bfloat16().float()
        grid = QuantGrid(8, scale, torch.full_like(scale, 128))
        return self._codes([QuantizedWeight(grid, grid.codes(weight).byte())], linears)

    def _bias(self, linears: Sequence[nn.Module], padded: int) -> int | None:
        biases = [getattr(linear, "bias", None) for linear in linears]
        if all(bias is None for bias in biases):
            return None
        stacked, start = torch.zeros(padded, dtype=torch.float32), 0
        linear: Any
        for linear, bias in zip(linears, biases, strict=True):
            end = start + linear.out_features
            if bias is not None:
                stacked[start:end] = bias.detach()
            start = end
        return self.own(stacked)

    def _part(self, tensor: Tensor) -> int:
        """Keep a tensor of a matrix alive; return its address."""
        address = self.own(tensor)
        self._parts.add(address)
        return address

    def own(self, tensor: Tensor) -> int:
        """Keep a tensor alive until it is released; return its address."""
        self._tensors[tensor.data_ptr()] = tensor
        return tensor.data_ptr()

    def release(self, *addresses: int | None) -> None:
        """Free tensors by address. Neither a structure nor a running pass may use them."""
        for address in addresses:
            if address is not None:
                self._parts.discard(address)
                self._tensors.pop(address, None)

    def release_matrix(self, matrix: c.Matrix) -> None:
        """Free the tensors of a matrix. Its views from `rows` become invalid, too."""
        parts = ("weights", "masks", "starts", "scales", "zeros", "bias")
        self.release(*(getattr(matrix, part) for part in parts))


def _blocks(table: Tensor) -> Tensor:
    """Rearrange [groups, outputs] to [outputs / 16, groups, 16]."""
    return table.T.reshape(-1, LANES, table.shape[0]).transpose(1, 2).contiguous()


class NativeLinear(nn.Module):
    """Linear layer [..., in] -> [..., out] in float32 that uses the kernels.

    Args:
        linear: layer with codes or with 16-bit weights.
        instructions: kernels to use; None for the best.
        rounded: round an `nn.Linear` to 8 bits.
        sparse: store pruned weights without zeros if this is faster.

    Attributes:
        sparse: True if the weights are stored without zeros.

    Raises:
        CompilerError: the kernels cannot be built here.
        ValueError: the number of inputs is no multiple of `LANES`.
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
            raise ValueError(f"inputs {[*x.shape]} instead of [..., {self._matrix.inputs}]")
        rows = x.reshape(-1, self._matrix.inputs).float().contiguous()
        y = torch.empty(len(rows), self._matrix.outputs, dtype=torch.float32)
        threads = torch.get_num_threads() if self._large else 1
        pointers = rows.data_ptr(), y.data_ptr()
        c.check(self._kernels.linear(self._matrix, *pointers, len(rows), threads))
        return y[:, : self.out_features].view(*x.shape[:-1], -1)
