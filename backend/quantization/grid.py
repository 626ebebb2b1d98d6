"""Group-wise integer grids and weights rounded to them, for training, export and inference.

    q_ij = clamp( round(w_ij / s_ik + z_ik), 0, Q ),   k = j // g,   Q = 2^n - 1
    w_ij ~ s_ik (q_ij - z_ik)

A row of K inputs has G = K / g groups, each with a scale s and a zero-point z:

    symmetric    z = 2^(n-1) everywhere
    zero-point   z an integer in 0 .. Q
    offset       z real: w ~ s q + b with b = -s z, as in GGUF's Q4_1; files store b

The first two contain the weight 0. The integer part of a zero-point is added after rounding and
its fraction before: z = i + f, and q = clamp( round(w / s + f) + i ).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.errors import ModelError
from backend.quantization import GridType
from backend.quantization.bases import PLAIN, Basis, basis_from
from backend.quantization.config import MAX_BITS, MIN_BITS


def unclipped_codes_(W: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Replace `W` [rows, groups, g] by round(w / s + z) in place; scale and zero [rows, groups]."""
    integer, fraction = split_zero(zero)
    W.div_(scale.unsqueeze(-1))
    if fraction is not None:
        W.add_(fraction.unsqueeze(-1))
    return W.round_().add_(integer.unsqueeze(-1))


def split_zero(zero: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split zero-points z = i + f into integer and fraction, in their shape. The fraction is None
    if all zero-points are integers, which only the CPU can tell without waiting."""
    integer = zero.round()
    fraction = zero - integer
    return integer, None if fraction.is_cpu and not fraction.any() else fraction


@dataclass(frozen=True)
class QuantGrid:
    """Quantization grid of a layer.

    Attributes:
        bits: bits per code, n.
        scale: group scales s, float32 [out, groups].
        zero: zero-points z, float32 [out, groups]; integers, except on a grid with offsets.
    """

    bits: int
    scale: Tensor
    zero: Tensor

    @property
    def top(self) -> int:
        """Highest code Q."""
        return 2**self.bits - 1

    @property
    def tops(self) -> Tensor:
        """Highest code of each row, [rows]."""
        return torch.full_like(self.scale[:, 0], self.top)

    @property
    def groups(self) -> int:
        """Number of groups per row."""
        return self.scale.shape[1]

    def codes(self, W: Tensor) -> Tensor:
        """Return the codes of `W` [out, in], float32 of the same shape."""
        u = W.to(torch.float32, copy=True).view(len(W), self.groups, -1)
        return unclipped_codes_(u, self.scale, self.zero).clamp_(0, self.top).view(W.shape)

    def values(self, codes: Tensor) -> Tensor:
        """Return the weights s (q - z) of `codes` [out, in] of any dtype, float32 of the same
        shape."""
        q = codes.to(torch.float32, copy=True).view(len(codes), self.groups, -1)
        q.sub_(self.zero.unsqueeze(-1)).mul_(self.scale.unsqueeze(-1))
        return q.view(codes.shape)

    def nearest(self, W: Tensor) -> Tensor:
        """Return `W` [out, in] rounded to the grid, float32."""
        return self.values(self.codes(W))

    def stored(self, dtype: torch.dtype, grid: GridType) -> "QuantGrid":
        """Return this grid with its stored numbers (scales and offsets) rounded to `dtype`."""
        scale = self.scale.to(dtype).float()
        if grid != "offset":
            return QuantGrid(self.bits, scale, self.zero)
        offset = offsets_of(self.scale, self.zero)
        # smallest float16 number, because a scale of 0 would lose b
        scale = torch.where(scale == 0, 2.0**-24, scale)
        return QuantGrid(self.bits, scale, zeros_of(scale, offset.to(dtype)))


@dataclass(frozen=True)
class StackedGrid(QuantGrid):
    """Grids of different bit widths with their rows stacked.

    Attributes:
        bits: the highest bit width.
        row_tops: highest code of each row, [rows].
    """

    row_tops: Tensor

    @property
    def tops(self) -> Tensor:
        return self.row_tops


def stacked(grids: Sequence[QuantGrid]) -> StackedGrid:
    """Stack the rows of grids with the same number of groups."""
    scale, zero = (torch.cat([getattr(g, part) for g in grids]) for part in ("scale", "zero"))
    return StackedGrid(max(g.bits for g in grids), scale, zero, torch.cat([g.tops for g in grids]))


def offsets_of(scale: Tensor, zero: Tensor) -> Tensor:
    """Return the offsets b = -s z, float32."""
    return -scale * zero


def zeros_of(scale: Tensor, offset: Tensor) -> Tensor:
    """Return the zero-points z = -b / s, float32; 0 if the scale is 0, since b is then 0 as
    well."""
    return torch.where(scale == 0, 0.0, -offset.float() / scale)


def minmax_grid(V: Tensor, bits: int, grid: GridType, ratio: float = 1.0) -> QuantGrid:
    """Return the grid over `ratio` of the range of each group; V float32 [rows, groups, g]."""
    return group_scales(V.amin(-1), V.amax(-1), bits, grid, ratio)


def group_scales(
    low: Tensor, high: Tensor, bits: int, grid: GridType, ratio: float | Tensor = 1.0
) -> QuantGrid:
    """Return the grid over `ratio` of the ranges from `low` to `high`, float32 [rows, groups].

    symmetric     s = max|w| / (2^(n-1) - 1/2)
    zero-point    s = (max - min) / Q,  z = round(-min / s);  the range includes 0
    offset        s = (max - min) / Q,  z = -min / s;  the range shrinks around its center
    """
    top = 2**bits - 1
    if grid == "offset":
        cut = (high - low) * ((1 - ratio) / 2)
        low, scale = low + cut, (high - low - 2 * cut) / top
        scale = torch.where(scale > 0, scale, 1.0)  # equal weights: q = 0, and the offset is w
        return QuantGrid(bits, scale, -low / scale)
    low, high = low.clamp(max=0) * ratio, high.clamp(min=0) * ratio
    if grid == "symmetric":
        scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 0.5)
        zero = torch.full_like(scale, 2 ** (bits - 1))
        return QuantGrid(bits, torch.where(scale > 0, scale, 1.0), zero)
    scale = (high - low) / top
    scale = torch.where(scale > 0, scale, 1.0)  # all zeros: any scale is correct
    return QuantGrid(bits, scale, (-low / scale).round_().clamp_(0, top))


@dataclass(frozen=True)
class QuantizedWeight:
    """Weights of a layer as codes on a grid.

    Attributes:
        codes: uint8 [out, in], in 0 .. Q.
        basis: basis of inputs and outputs in which the weights were rounded.
    """

    grid: QuantGrid
    codes: Tensor
    basis: Basis = PLAIN

    @property
    def group_size(self) -> int:
        """Number of inputs per group."""
        return self.codes.shape[1] // self.grid.groups

    def dense(self) -> Tensor:
        """Return the weights [out, in], float32."""
        values = self.grid.values(self.codes)
        return values if self.basis.plain else self.basis.back(values)

    def with_rows(self, change: Callable[[Tensor], Tensor]) -> "QuantizedWeight":
        """Return the layer with `change` applied to the rows of its tensors."""
        scale, zero, codes = map(change, (self.grid.scale, self.grid.zero, self.codes))
        return QuantizedWeight(QuantGrid(self.grid.bits, scale, zero), codes)

    def split(self, count: int) -> "list[QuantizedWeight]":
        """Split the layer into `count` parts with the same number of rows."""
        tensors = (self.grid.scale, self.grid.zero, self.codes)
        parts = zip(*(tensor.chunk(count) for tensor in tensors), strict=True)
        return [QuantizedWeight(QuantGrid(self.grid.bits, s, z), codes) for s, z, codes in parts]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store; see `quantized_from`."""
        zero = self.grid.zero.to(torch.uint8)
        zero = zero if torch.equal(zero.float(), self.grid.zero) else self.grid.zero
        parts = {"codes": self.codes, "scale": self.grid.scale, "zero": zero}
        return parts | self.basis.tensors()


def joined(layers: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Join layers with the same bits and groups along `out`."""
    codes = torch.cat([layer.codes for layer in layers])
    scale, zero = (
        torch.cat([getattr(layer.grid, part) for layer in layers]) for part in ("scale", "zero")
    )
    return QuantizedWeight(QuantGrid(layers[0].grid.bits, scale, zero), codes)


def quantized_from(name: str, bits: int, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    """Build a layer from its stored tensors codes [out, in], scale [out, groups] and zero [out,
    groups].

    Raises:
        ModelError: shapes are inconsistent, or codes need more than `bits` bits.
    """
    codes, scale, zero = (tensors[part] for part in ("codes", "scale", "zero"))
    if codes.dim() != 2 or scale.shape != zero.shape or len(scale) != len(codes):
        raise _refused(name, f"Its codes are {_shape(codes)}, its scales {_shape(scale)}.")
    if scale.dim() != 2 or codes.shape[1] % scale.shape[1]:
        raise _refused(name, f"{scale.shape[-1]} groups do not divide {codes.shape[1]} inputs.")
    top = 2**bits - 1
    highest = max(int(codes.max()), 0 if zero.is_floating_point() else int(zero.max()))
    if not MIN_BITS <= bits <= MAX_BITS or highest > top:
        raise _refused(name, f"It has codes above {top}, the maximum for {bits} bits.")
    grid = QuantGrid(bits, scale.float(), zero.float())
    return QuantizedWeight(grid, codes, basis_from(tensors))


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape))


def _refused(name: str, why: str) -> ModelError:
    return ModelError(f"{name} is not a quantized layer.", why, "Export the model again.")
