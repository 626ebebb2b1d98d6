"""The auto-embedding block: the K heads of one anchor attend to each other, without a mask.

    Y   = Z + P                            P [K, r] learned: head position encoding
    Y'  = Y  + MHA(norm Y)
    Y'' = Y' + FFN(norm Y')                FFN: r -> 4 r -> r

The last projections of both sums are initialised to zero, so the block starts as Z + P. With r < d
it works on a projection: Z + up(Y''), with up initialised to zero.

The bi-directional block is from the paper; its sizes and initialization are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

HEAD_WIDTH = 64


class AutoEmbedding(nn.Module):
    """[n, K, d] -> [n, K, d]; anchors (first dimension) are independent."""

    def __init__(
        self, width: int, inner: int, heads: int, position: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()

        def linear(inputs: int, outputs: int, zero: bool = False) -> nn.Linear:
            made = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
            return made.requires_grad_() if not zero else _zeroed(made)

        self.attention_heads = _attention_heads(inner)
        reduced = inner != width
        self.down = linear(width, inner) if reduced else nn.Identity()
        self.up = linear(inner, width, zero=True) if reduced else None
        self.position = (
            nn.Parameter(0.02 * torch.randn(heads, inner, dtype=dtype)) if position else None
        )
        self.norm1, self.norm2 = (nn.RMSNorm(inner, eps=1e-6, dtype=dtype) for _ in range(2))
        self.qkv, self.out = linear(inner, 3 * inner), linear(inner, inner, zero=True)
        self.wide, self.narrow = linear(inner, 4 * inner), linear(4 * inner, inner, zero=True)

    def forward(self, slots: Tensor) -> Tensor:
        y: Tensor = self.down(slots)
        if self.position is not None:
            y = y + self.position
        y = y + self._attention(self.norm1(y))
        y = y + self.narrow(silu(self.wide(self.norm2(y))))
        return y if self.up is None else slots + self.up(y)

    def _attention(self, y: Tensor) -> Tensor:
        n, heads, inner = y.shape
        parts = self.qkv(y).view(n, heads, 3, self.attention_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [n, attention heads, K, width]
        mixed = scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(n, heads, inner))


def _zeroed(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    return linear


def _attention_heads(inner: int) -> int:
    """The number that makes heads of about 64 and divides the width."""
    wanted = max(1, inner // HEAD_WIDTH)
    return next(n for n in range(wanted, 0, -1) if inner % n == 0)
