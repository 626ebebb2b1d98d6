"""A linear layer trained inside its quantisation grid (our reading of DL-QAT).

Forward, with k the group of column j:

    W'     = W0 + c B A                                   c = alpha / r * rms(W) / 0.14
    q_ij   = clamp( round(W'_ij / s_ik + z_ik), 0, Q )     the grid s, z is fixed
    What   = m_ik s_ik (q_ij - z_ik)                      m scales the whole group
    y      = x What^T

Backward (straight-through: round is the identity inside the range), G = dL/dWhat = (dL/dy)^T x:

    dL/dm_ik = s_ik sum_{j in k} G_ij (q_ij - z_ik)
    D_ij     = m_ik G_ij  where 0 <= round(W'/s + z) <= Q, else 0        = dL/dW'
    dL/dB    = c D A^T,    dL/dA = c B^T D,    dL/dx = (dL/dy) What

W', codes and m are float32 whatever the precision of the forward pass: m is close to 1, where a
bfloat16 step is 0.4 %, and W' in bfloat16 would flip codes. Nothing of the size of the weight is
kept between forward and backward: codes are recomputed from A and B in chunks of rows that fit into
a core's cache. Only one layer's full gradient exists at a time; products with it use the precision
of the forward pass, as in LoRA.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from backend.quantization import GridType
from backend.quantization.grid import QuantGrid, QuantizedWeight, split_zero
from backend.quantization.range_search import group_sums

REFERENCE_RMS = 0.14  # near that of the weights of SmolLM2-135M (0.19), on which rates were tuned
PANEL = {"cpu": 2**18}  # weights per chunk; elsewhere the whole matrix
UNLIMITED = 2**62


def new_factors(
    shape: tuple[int, int],
    rank: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank], float32, initialised as in LoRA: Kaiming-uniform, zeros.

    A is drawn on the CPU, so that a seed means the same on any device.
    """
    A = torch.empty(rank, shape[1])
    if rank:
        nn.init.kaiming_uniform_(A, a=5**0.5, generator=generator)
    return A.to(device), torch.zeros(shape[0], rank, device=device)


def update_factor(W: Tensor, alpha: float, rank: int) -> float:
    """c: what B A is multiplied by, relative to the weights `W` of the dense layer, so that a step
    changes large and small weights by the same share (ours); 0 without a rank."""
    rms = W.float().square().mean().sqrt().item()
    return alpha / rank * (rms or REFERENCE_RMS) / REFERENCE_RMS if rank else 0.0


class _FakeQuantLinear(torch.autograd.Function):
    """x, A, B, m -> y. The gradients of A, B and m come from one product, which is overwritten by
    D in one pass over its rows."""

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
        What, dm = torch.empty_like(G), torch.empty_like(m)
        for panel, (to_What, of_G, to_dm) in layer.panels(What, G, dm):
            if needs_x:
                panel.values(to_What)
            panel.backward(of_G, to_dm)
        D, c = G, layer.factor
        dA, dB = B.to(D.dtype).T @ D, D @ A.to(D.dtype).T
        found = (dA.to(A.dtype).mul_(c), dB.to(B.dtype).mul_(c), dm)
        dx = dy @ What if needs_x else None
        return dx, *(g if need else None for g, need in zip(found, needs, strict=True)), None, None


class _RowPanel:
    """Some rows of a layer's weight on the grid.

    Args:
        W0, dense: [rows, in].
        B: [rows, rank].
        scale, low, high, part, m: [rows, groups, 1]; the least and the greatest level, and the
            fractions f of the zero-points (None: they are whole).

    Attributes:
        level: q - z = clamp(round(W' / s + f) - f, -z, Q - z), float32 [rows, groups, size].
    """

    def __init__(
        self, layer: "DLQATLinear", W0: Tensor, dense: Tensor, B: Tensor,
        scale: Tensor, m: Tensor, low: Tensor, high: Tensor, part: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.scale, self.m = scale, m
        W = torch.addmm(W0.to(m.dtype), B, layer.A.detach(), alpha=layer.factor)
        self.rounded = W.view(len(W), scale.shape[1], -1)
        self.rounded.div_(scale)
        if part is None:
            self.rounded.round_()
        else:
            self.rounded.add_(part).round_().sub_(part)
        self.level = torch.maximum(self.rounded, low)
        torch.minimum(self.level, high, out=self.level)  # 4 times as fast as clamp
        self.stays = dense.reshape(self.level.shape) != 0 if layer.keep_zeros else None
        if self.stays is not None:
            self.level.mul_(self.stays)

    def inside(self) -> Tensor:
        """1 where rounding was not clipped, else 0; called once."""
        inside = self.rounded.eq_(self.level)
        return inside if self.stays is None else inside.mul_(self.stays)

    def values(self, out: Tensor) -> None:
        """Write What into `out` [rows, in]."""
        torch.mul(self.level, self.m * self.scale, out=out.view(self.level.shape))

    def backward(self, G: Tensor, dm: Tensor) -> None:
        """Turn dL/dWhat [rows, in] into D and write dL/dm [rows, groups]. Called last, as it
        overwrites the levels."""
        g, inside = G.view(self.level.shape).to(self.m.dtype), self.inside()
        torch.mul(group_sums(self.level.mul_(g)), self.scale.squeeze(-1), out=dm)
        torch.mul(g.mul_(inside), self.m, out=G.view(g.shape))


class DLQATLinear(nn.Module):
    """Replaces a linear while it is trained (quantization-aware).

    Args:
        base: the dense layer; it is not changed.
        grid: the quantisation space.
        start: W0 [out, in] float32, where it is not the dense weight.
        rank: 0 leaves A and B empty.
        trains: whether A and B are trained, and whether m is.
        keep_zeros: weights that are 0 in the dense layer stay 0.
        generator: draws A.
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
        self.factor = update_factor(self._weight, alpha, rank)
        A, B = new_factors(self.shape, rank, grid.scale.device, generator)
        self.A = nn.Parameter(A, requires_grad=trains[0])
        self.B = nn.Parameter(B, requires_grad=trains[0])
        self.m = nn.Parameter(torch.ones_like(grid.scale), requires_grad=trains[1])

    @property
    def _weight(self) -> Tensor:
        """The dense weight, viewed as [out, in]."""
        weight = self.base.weight.detach()
        return weight.T if isinstance(self.base, Conv1D) else weight

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self._weight.shape
        return rows, columns

    def panels(self, *others: Tensor) -> Iterator[tuple[_RowPanel, tuple[Tensor, ...]]]:
        """The weight on its grid in chunks of rows, and the same rows of `others`."""
        columns = self.shape[1]
        rows = max(1, PANEL.get(self.m.device.type, UNLIMITED) // columns)
        dense, (whole, part) = self._weight, split_zero(self.grid.zero)
        of_groups = [self.grid.scale, self.m.detach(), -whole, self.grid.top - whole]
        if part is not None:  # as levels are: k - f, so that those at a bound equal it
            of_groups = [*of_groups[:2], of_groups[2] - part, of_groups[3] - part, part]
        of_rows = (dense if self.start is None else self.start, dense, self.B.detach())
        own = (*of_rows, *(each.unsqueeze(-1) for each in of_groups))
        parts = zip(*(each.split(rows) for each in (*own, *others)), strict=True)
        for each in parts:
            yield _RowPanel(self, *each[: len(own)]), each[len(own) :]

    @torch.no_grad()
    def effective(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What [out, in]."""
        What = torch.empty(self.shape, dtype=dtype, device=self.m.device)
        with torch.autocast(What.device.type, enabled=False):  # it would round W' and the codes
            for panel, (rows,) in self.panels(What):
                panel.values(rows)
        return What

    @torch.no_grad()
    def walk(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Chunks of rows: the slice, q - z and whether inside, both [rows, groups, size]."""
        first = 0
        for panel, _ in self.panels():
            rows = slice(first, first + len(panel.level))
            yield rows, panel.level, panel.inside()
            first = rows.stop

    def dense(self, rows: slice) -> Tensor:
        """Rows of the dense weight."""
        return self._weight[rows]

    def codes_at(self, level: Tensor, rows: slice) -> Tensor:
        """The codes of `level` = q - z [rows, groups, size] of these rows, float32 [rows, in]."""
        codes = (level + self.grid.zero[rows].unsqueeze(-1)).round_()
        return codes.clamp_(0, self.grid.top).view(len(level), -1)

    def codes_at_start(self, rows: slice) -> Tensor:
        """Rows of the codes before any training, float32 [rows, in]."""
        W0 = self.dense(rows) if self.start is None else self.start[rows]
        grid = QuantGrid(self.grid.bits, self.grid.scale[rows], self.grid.zero[rows])
        return grid.codes(W0)

    def convert(
        self, stored: torch.dtype = torch.float32, grid: GridType = "zero-point"
    ) -> QuantizedWeight:
        """The current codes, with scales m s (and offsets -m s z) rounded to `stored`.

        Codes are never recomputed from a merged weight, which would give different ones. A
        negative m stays one, as the sign of the scale.
        """
        codes = torch.empty(self.shape, dtype=torch.uint8, device=self.m.device)
        for rows, level, _ in self.walk():
            codes[rows] = self.codes_at(level, rows).to(torch.uint8)
        folded = QuantGrid(self.grid.bits, self.m.detach() * self.grid.scale, self.grid.zero)
        return QuantizedWeight(folded.stored(stored, grid), codes)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y = _FakeQuantLinear.apply(x, self.A, self.B, self.m, self, dtype)
        return y if self.base.bias is None else y + self.base.bias.to(dtype)
