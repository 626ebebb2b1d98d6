"""The auto-embedding block: the K heads of one anchor attend to each other, without a mask.

    Y   = Z + P                            P [K, d] learned: head position encoding
    Y'  = Y  + MHA(norm Y)                 the last projections of both sums start at zero
    Y'' = Y' + FFN(norm Y')                FFN: d -> 4 d -> d

The bi-directional block is from the paper; its sizes and initialization are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

HEAD_WIDTH = 64  # about, of the attention


class AutoEmbedding(nn.Module):
    """[n, K, d] -> [n, K, d]; anchors (first dimension) are independent."""

    def __init__(self, width: int, heads: int, dtype: torch.dtype) -> None:
        super().__init__()

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, dtype=dtype)

        wanted = range(max(1, width // HEAD_WIDTH), 0, -1)
        self.attention_heads = next(n for n in wanted if width % n == 0)
        self.position = nn.Parameter(0.02 * torch.randn(heads, width, dtype=dtype))
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-6, dtype=dtype) for _ in range(2))
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.wide, self.narrow = linear(width, 4 * width), linear(4 * width, width)
        for last in (self.out, self.narrow):
            nn.init.zeros_(last.weight)

    def forward(self, slots: Tensor) -> Tensor:
        y = slots + self.position
        parts = self.qkv(self.norm1(y)).view(*y.shape[:2], 3, self.attention_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [n, attention heads, K, width]
        mixed = scaled_dot_product_attention(query, key, value)
        y = y + self.out(mixed.transpose(1, 2).reshape(y.shape))
        return y + self.narrow(silu(self.wide(self.norm2(y))))
