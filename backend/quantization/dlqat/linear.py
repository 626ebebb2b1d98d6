"""Linear layer trained inside its quantization grid (our reading of DL-QAT).

Forward, with k the group of column j:

    W'     = W0 + c B A                                   c = alpha / r * rms(W) / 0.14
    q_ij   = clamp( round(W'_ij / s_ik + z_ik), 0, Q )     the grid s, z is fixed
    What   = m_ik s_ik (q_ij - z_ik)                      m scales the whole group
    y      = x What^T

Backward (straight-through: round is the identity inside the range), G = dL/dWhat = (dL/dy)^T x:

    dL/dm_ik = s_ik sum_{j in k} G_ij (q_ij - z_ik)
    D_ij     = m_ik G_ij  where 0 <= round(W'/s + z) <= Q, else 0        = dL/dW'
    dL/dB    = c D A^T,    dL/dA = c B^T D,    dL/dx = (dL/dy) What

W', codes and m are float32 in any precision of the forward pass: m is close to 1, where a bfloat16
step is 0.4 %, and W' in bfloat16 would flip codes. No tensor of the size of the weight is kept
between forward and backward. Codes are recomputed from A and B, in C++ (`native`) or, on other
devices, in PyTorch in chunks of rows that fit into a core's cache. Only one layer's full gradient
exists at a time. Products with it use the precision of the forward pass, as in LoRA.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from backend.kernels.rounding import HALF, RoundedRows, usable
from backend.models.threads import parallel_map
from backend.quantization import GridType
from backend.quantization.grid import QuantGrid, QuantizedWeight, split_zero
from backend.quantization.range_search import group_sums

REFERENCE_RMS = 0.14  # close to SmolLM2-135M's (0.19), on which learning rates were tuned
PANEL = {"cpu": 2**18}  # weights per chunk; on other devices the whole matrix


def new_factors(
    shape: tuple[int, int],
    rank: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return A [rank, in] and B [out, rank], float32, initialized as in LoRA: Kaiming-uniform and
    zeros. A is drawn on the CPU, so that a seed gives the same A on any device."""
    A = torch.empty(rank, shape[1])
    if rank:
        nn.init.kaiming_uniform_(A, a=5**0.5, generator=generator)
    return A.to(device), torch.zeros(shape[0], rank, device=device)


def update_factor(W: Tensor, alpha: float, rank: int) -> float:
    """Return c, the factor of B A; 0 if the rank is 0. It is relative to the dense weights `W`, so
    that a step changes large and small weights by the same share (ours)."""
    rms = W.float().square().mean().sqrt().item()
    return alpha / rank * (rms or REFERENCE_RMS) / REFERENCE_RMS if rank else 0.0


class _FakeQuantLinear(torch.autograd.Function):
    """Fake-quantized linear: x, A, B, m -> y. The gradients of A, B and m come from one product G,
    which is overwritten with D in one pass over its rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        m: Tensor,
        layer: "DLQATLinear",
        dtype: torch.dtype,
    ) -> Tensor:
        x = x.to(dtype)
        ctx.save_for_backward(x, A, B, m)
        ctx.layer = layer
        return linear(x, layer.effective(dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, m = ctx.saved_tensors
        layer: DLQATLinear = ctx.layer
        needs_x, *needs = ctx.needs_input_grad[:4]
        dy = dy.to(x.dtype)
        G = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])  # [out, in]
        What, dm = torch.empty_like(G) if needs_x else None, torch.empty_like(m)

        def backward_rows(rows: slice) -> None:
            out = None if What is None else What[rows]
            layer.panel(rows, G.dtype).backward(G[rows], dm[rows], out)

        parallel_map(backward_rows, layer.parts(G.dtype))
        D, c = G, layer.factor
        dA, dB = B.to(D.dtype).T @ D, D @ A.to(D.dtype).T
        gradients = (dA.to(A.dtype).mul_(c), dB.to(B.dtype).mul_(c), dm)
        dx = None if What is None else dy @ What
        needed = (g if need else None for g, need in zip(gradients, needs, strict=True))
        return dx, *needed, None, None


class _RowPanel:
    """`RoundedRows` in PyTorch, for any device and precision. Only one method may be called, once,
    because it overwrites the levels."""

    def __init__(
        self,
        start: Tensor,
        dense: Tensor | None,
        A: Tensor,
        B: Tensor,
        scale: Tensor,
        zero: Tensor,
        m: Tensor,
        top: int,
        factor: float,
    ) -> None:
        self._scale, self._m = scale.unsqueeze(-1), m.unsqueeze(-1)
        integer, fraction = split_zero(zero.unsqueeze(-1))
        W = torch.addmm(start.to(m.dtype), B, A, alpha=factor)
        self._rounded = W.view(*scale.shape, -1).div_(self._scale)
        low, high = -integer, top - integer
        if fraction is None:
            self._rounded.round_()
        else:  # levels are k - f, so a level at a bound equals the bound exactly
            self._rounded.add_(fraction).round_().sub_(fraction)
            low, high = low - fraction, high - fraction
        self._level = torch.maximum(self._rounded, low)
        torch.minimum(self._level, high, out=self._level)  # 4 times as fast as clamp
        self._nonzero = None if dense is None else dense.reshape(self._level.shape) != 0
        if self._nonzero is not None:
            self._level.mul_(self._nonzero)

    def levels(self) -> tuple[Tensor, Tensor]:
        inside = self._rounded.eq_(self._level)
        return self._level, inside if self._nonzero is None else inside.mul_(self._nonzero)

    def values(self, out: Tensor) -> None:
        torch.mul(self._level, self._m * self._scale, out=out.view(self._level.shape))

    def backward(self, G: Tensor, dm: Tensor, out: Tensor | None) -> None:
        if out is not None:
            self.values(out)
        level, inside = self.levels()
        g = G.view(level.shape).to(self._m.dtype)
        torch.mul(group_sums(level.mul_(g)), self._scale.squeeze(-1), out=dm)
        torch.mul(g.mul_(inside), self._m, out=G.view(g.shape))


class DLQATLinear(nn.Module):
    """Replacement of a linear during quantization-aware training.

    Args:
        base: the dense layer; not changed.
        grid: quantization grid.
        start: W0 [out, in] float32; None for the dense weight.
        rank: rank of A and B; 0 leaves them empty.
        alpha: see `update_factor`.
        trains: two flags: train A and B; train m.
        keep_zeros: keep weights at 0 that are 0 in the dense layer.
        generator: random numbers for A.
    """

    def __init__(
        self,
        base: nn.Linear | Conv1D,
        grid: QuantGrid,
        start: Tensor | None = None,
        *,
        rank: int = 0,
        alpha: float = 1.0,
        trains: tuple[bool, bool] = (True, True),
        keep_zeros: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base, self.grid, self.start = base, grid, start
        self.keep_zeros = keep_zeros
        rank = rank if trains[0] else 0
        self.factor = update_factor(self.dense, alpha, rank)
        A, B = new_factors(self.shape, rank, grid.scale.device, generator)
        self.A = nn.Parameter(A, requires_grad=trains[0])
        self.B = nn.Parameter(B, requires_grad=trains[0])
        self.m = nn.Parameter(torch.ones_like(grid.scale), requires_grad=trains[1])

    @property
    def dense(self) -> Tensor:
        """Dense weight, viewed as [out, in]; a placeholder if it is not in memory."""
        weight = self.base.weight.detach()
        return weight.T if isinstance(self.base, Conv1D) else weight

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the weight."""
        rows, columns = self.dense.shape
        return rows, columns

    def parts(self, dtype: torch.dtype | None = None) -> list[slice]:
        """Return chunks of rows for `panel`. `dtype`: see `panel`; None for small chunks in any
        case."""
        count, columns = self.shape
        if dtype is not None and self._is_native(dtype):
            return [slice(0, count)]
        rows = max(1, PANEL.get(self.m.device.type, 2**62) // columns)
        return [slice(first, min(first + rows, count)) for first in range(0, count, rows)]

    def panel(
        self, rows: slice, dtype: torch.dtype = torch.float32, rank: int | None = None
    ) -> RoundedRows | _RowPanel:
        """Return rows of the weight on its grid.

        Args:
            dtype: dtype of What and its gradient.
            rank: use only the first columns of B and rows of A; None for all.
        """
        dense = self.dense[rows] if self.keep_zeros else None
        A, B, m = self.A.detach()[:rank], self.B.detach()[rows, :rank], self.m.detach()[rows]
        scale, zero, top = self.grid.scale[rows], self.grid.zero[rows], self.grid.top
        panel_class = RoundedRows if self._is_native(dtype) else _RowPanel
        return panel_class(self.initial[rows], dense, A, B, scale, zero, m, top, self.factor)

    @property
    def initial(self) -> Tensor:
        """W0 [out, in]."""
        return self.dense if self.start is None else self.start

    def _is_native(self, dtype: torch.dtype) -> bool:
        tensors = (self.initial, self.A, self.B, self.grid.scale, self.grid.zero, self.m)
        return dtype in HALF and usable(*tensors, *[self.dense] * self.keep_zeros)

    @torch.no_grad()
    def effective(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the effective weight What [out, in]."""
        What = torch.empty(self.shape, dtype=dtype, device=self.m.device)
        with torch.autocast(What.device.type, enabled=False):  # would round W' and change codes
            parts = self.parts(dtype)
            parallel_map(lambda rows: self.panel(rows, dtype).values(What[rows]), parts)
        return What

    @torch.no_grad()
    def walk(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield chunks of rows: the slice, the levels q - z [rows, groups, size], and a mask of the
        same shape of weights inside the range."""
        for rows in self.parts():
            yield rows, *self.panel(rows).levels()

    def codes_at(self, level: Tensor, rows: slice) -> Tensor:
        """Return the codes, float32 [rows, in], of levels q - z [rows, groups, size]."""
        codes = (level + self.grid.zero[rows].unsqueeze(-1)).round_()
        return codes.clamp_(0, self.grid.top).view(len(level), -1)

    @torch.no_grad()
    def figures(self, reference: Tensor, rows: slice) -> tuple[int, Tensor, Tensor, Tensor]:
        """Return the statistics of `RoundedRows.snapshot_statistics` for some rows, with errors
        relative to the weights `reference` [out, in]."""
        panel, dense = self.panel(rows), reference[rows]
        if isinstance(panel, RoundedRows) and usable(dense):
            return panel.snapshot_statistics(dense)
        level, inside = panel.levels()
        changed = int((level != self.panel(rows, rank=0).levels()[0]).sum())
        codes = self.codes_at(level, rows).flatten().byte()
        counts = torch.bincount(codes, minlength=self.grid.top + 1).cpu()
        step = (self.m.detach() * self.grid.scale)[rows].unsqueeze(-1)
        D = level.mul_(step).sub_(dense.reshape(level.shape))
        return changed, counts, group_sums(D.square_()), group_sums(inside)

    def convert(
        self, scale_dtype: torch.dtype = torch.float32, grid: GridType = "zero-point"
    ) -> QuantizedWeight:
        """Return the current codes, with scales m s (and offsets -m s z) rounded to `scale_dtype`.

        Codes are never recomputed from a merged weight, because they could differ. A negative m
        becomes the sign of the scale.
        """
        codes = torch.empty(self.shape, dtype=torch.uint8, device=self.m.device)
        for rows, level, _ in self.walk():
            codes[rows] = self.codes_at(level, rows).to(torch.uint8)
        folded = QuantGrid(self.grid.bits, self.m.detach() * self.grid.scale, self.grid.zero)
        return QuantizedWeight(folded.stored(scale_dtype, grid), codes)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        y = _FakeQuantLinear.apply(x, self.A, self.B, self.m, self, dtype)
        return y if self.base.bias is None else y + self.base.bias.to(dtype)
