"""A linear layer trained inside its quantisation grid (our reading of DL-QAT).

Forward, with k the group of column j:

    W'     = W0 + c B A                                   c = alpha / r
    q_ij   = clamp( round(W'_ij / s_ik) + z_ik, 0, Q )     the grid s, z is fixed
    What   = m_ik s_ik (q_ij - z_ik)                      m scales the whole group
    y      = x What^T

Backward (straight-through: round is the identity inside the range), G = dL/dWhat = (dL/dy)^T x:

    dL/dm_ik = s_ik sum_{j in k} G_ij (q_ij - z_ik)
    D_ij     = m_ik G_ij  where 0 <= round(W'/s) + z <= Q, else 0        = dL/dW'
    dL/dB    = c D A^T,    dL/dA = c B^T D,    dL/dx = (dL/dy) What

The ablation "lsq" rounds with the learned step itself, as LSQ does (and L4Q with LoRA inside):
q = clamp(round(W' / (m s)) + z), and then

    dL/dm_ik = s_ik sum_j G_ij (q_ij - z_ik - W'_ij / (m_ik s_ik)   inside,  q_ij - z_ik  clipped)
    D_ij     = G_ij  inside, 0 clipped

W', codes and m are float32 whatever the forward pass computes in: m lives near 1, where a bfloat16
step is 0.4 %, and W' in bfloat16 would flip codes. Nothing of the weight's size is kept between
forward and backward: codes are computed again from A and B, a few rows at a time, so that each
product and rounding finds them in a core's cache. One layer's full gradient exists at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from backend.methods.dlqat.spaces import group_sums
from backend.models.quantised import Grid, Quantised

PANEL = {"cpu": 2**17}  # weights treated at once; elsewhere the whole matrix
FULL = 2**62


def new_factors(
    shape: tuple[int, int],
    rank: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank], float32, as LoRA begins: Kaiming-uniform, and zeros.

    A is drawn on the CPU, so that a seed means the same on any device.
    """
    A = torch.empty(rank, shape[1])
    if rank:
        nn.init.kaiming_uniform_(A, a=5**0.5, generator=generator)
    return A.to(device), torch.zeros(shape[0], rank, device=device)


class _InGrid(torch.autograd.Function):
    """x, A, B, m -> y. Gradients of A, B and m come from one product and one walk over rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, m: Tensor, layer: DLQATLinear, dtype: torch.dtype
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
        What = G.new_empty(G.shape) if needs_x else None
        dA, dB, dm = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(m)
        for rows in layer.panels():
            walked = _Panel(layer, rows)
            if What is not None:
                walked.values(What[rows])
            D = walked.backward(G[rows], dm[rows])
            if needs[0] or needs[1]:
                torch.mm(D, A.T, out=dB[rows])
                dA.addmm_(B[rows].T, D)
        dx = None if What is None else dy @ What
        found = (dA.mul_(layer.factor), dB.mul_(layer.factor), dm)
        return dx, *(g if need else None for g, need in zip(found, needs, strict=True)), None, None


class _Panel:
    """Some rows of a layer's weight on the grid, float32 [rows, groups, size].

    Attributes:
        level: q - z = clamp(round(W' / s), -z, Q - z).
    """

    def __init__(self, layer: DLQATLinear, rows: slice) -> None:
        self.layer, self.m = layer, layer.m.detach()[rows].unsqueeze(-1)
        self.scale, zero = layer.grid.scale[rows], layer.grid.zero[rows]
        W = layer.moved(rows)
        step = self.scale * self.m.squeeze(-1) if layer.tied else self.scale
        self.v = W / step.unsqueeze(-1) if layer.tied else None
        self.rounded, lowest = W.div_(step.unsqueeze(-1)).round_(), -zero.unsqueeze(-1)
        self.level = torch.maximum(self.rounded, lowest)
        torch.minimum(self.level, lowest + layer.grid.top, out=self.level)
        self.stays = layer.dense(rows).reshape(W.shape) != 0 if layer.keep_zeros else None
        if self.stays is not None:
            self.level.mul_(self.stays)

    def inside(self) -> Tensor:
        """1 where the rounding was not clipped, else 0; called once."""
        inside = self.rounded.eq_(self.level)
        return inside if self.stays is None else inside.mul_(self.stays)

    def values(self, out: Tensor) -> None:
        """Writes What into `out` [rows, in]."""
        scale = self.m * self.scale.unsqueeze(-1)
        torch.mul(self.level, scale, out=out.view(self.level.shape))

    def backward(self, G: Tensor, dm: Tensor) -> Tensor:
        """D [rows, in], given dL/dWhat, which may be overwritten; writes dL/dm [rows, groups]."""
        G, inside = G.to(self.m.dtype).view(self.level.shape), self.inside()
        slope = self.level if self.v is None else self.v.mul_(inside).neg_().add_(self.level)
        torch.mul(group_sums(slope * G), self.scale, out=dm)
        D = G.mul_(inside)
        return (D if self.layer.tied else D.mul_(self.m)).view(len(D), -1)


class DLQATLinear(nn.Module):
    """Stands in the place of a linear while it is trained.

    Args:
        base: the dense layer; it is not changed.
        grid: the quantisation space.
        start: W0 [out, in] float32, where it is not the dense weight.
        rank: 0 leaves A and B empty.
        trains: whether A and B are trained, and whether m is.
        tied: the ablation "lsq".
        keep_zeros: weights that are 0 in the dense layer stay 0.
        generator: draws A.
    """

    def __init__(
        self,
        base: nn.Linear | Conv1D,
        grid: Grid,
        start: Tensor | None = None,
        *,
        rank: int = 0,
        alpha: float = 1.0,
        trains: tuple[bool, bool] = (True, True),
        tied: bool = False,
        keep_zeros: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base, self.grid, self.start = base, grid, start
        self.tied, self.keep_zeros, self.teaching = tied, keep_zeros, False
        rank = rank if trains[0] else 0
        self.factor = alpha / rank if rank else 0.0
        A, B = new_factors(self.shape, rank, grid.scale.device, generator)
        self.A = nn.Parameter(A, requires_grad=trains[0])
        self.B = nn.Parameter(B, requires_grad=trains[0])
        self.m = nn.Parameter(torch.ones_like(grid.scale), requires_grad=trains[1])

    @property
    def _weight(self) -> Tensor:
        """The dense weight, seen as [out, in]."""
        weight = self.base.weight.detach()
        return weight.T if isinstance(self.base, Conv1D) else weight

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self._weight.shape
        return rows, columns

    def panels(self) -> Iterator[slice]:
        """Row ranges that are treated together."""
        rows, columns = self.shape
        step = max(1, PANEL.get(self.m.device.type, FULL) // columns)
        for first in range(0, rows, step):
            yield slice(first, min(first + step, rows))

    def dense(self, rows: slice) -> Tensor:
        """Rows of the dense weight."""
        return self._weight[rows]

    def moved(self, rows: slice) -> Tensor:
        """A copy of rows of W' = W0 + c B A, float32 [rows, groups, size]."""
        W0 = (self.dense(rows) if self.start is None else self.start[rows]).to(self.m.dtype)
        if self.factor:
            W = torch.addmm(W0, self.B.detach()[rows], self.A.detach(), alpha=self.factor)
        else:
            W = W0.clone(memory_format=torch.contiguous_format)
        return W.view(len(W), self.grid.groups, -1)

    @torch.no_grad()
    def effective(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What [out, in]."""
        What = torch.empty(self.shape, dtype=dtype, device=self.m.device)
        with torch.autocast(What.device.type, enabled=False):  # it would round W' and the codes
            for rows in self.panels():
                _Panel(self, rows).values(What[rows])
        return What

    @torch.no_grad()
    def walk(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Row by row: which rows, q - z and whether inside, both [rows, groups, size]."""
        for rows in self.panels():
            panel = _Panel(self, rows)
            yield rows, panel.level, panel.inside()

    def codes_at_start(self, rows: slice) -> Tensor:
        """Rows of the codes before any training, float32 [rows, in]."""
        W0 = self.dense(rows) if self.start is None else self.start[rows]
        grid = Grid(self.grid.bits, self.grid.scale[rows], self.grid.zero[rows])
        return grid.codes(W0)

    def freeze(self, stored: torch.dtype = torch.float32) -> Quantised:
        """The codes as they are now, once and for all, with scales m s rounded to `stored`.

        Nothing is ever rounded to a grid again: a merged weight would land on other codes.
        """
        codes = torch.empty(self.shape, dtype=torch.uint8, device=self.m.device)
        for rows, level, _ in self.walk():
            codes[rows] = level.add_(self.grid.zero[rows].unsqueeze(-1)).view(codes[rows].shape)
        scale = (self.m.detach() * self.grid.scale).to(stored).float()
        return Quantised(Grid(self.grid.bits, scale, self.grid.zero), codes)

    def forward(self, x: Tensor) -> Tensor:
        if self.teaching:
            return self.base(x)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y = _InGrid.apply(x, self.A, self.B, self.m, self, dtype)
        return y if self.base.bias is None else y + self.base.bias.to(dtype)
