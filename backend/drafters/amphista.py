"""Amphista (Li et al., arXiv 2406.13170): draft the next K tokens in one parallel pass.

Anchor i: the tokens up to x_{i+1} are known. Head k predicts x_{i+1+k}, k = 1..K. With h_i the
target model's last hidden state and E its input embedding, both frozen:

    u_i = F1 [h_i ; E x_{i+1}]          a_i = SA1(u_<=i)       causal, its own key-value cache
    v_i = F2 [a_i ; E x_{i+1}]          b_i = SA2(v_<=i)       causal, its own key-value cache
    s_k = a_i  for k <= K/2, else b_i   two stages of heads
    e_k = s_k + SiLU(M_k s_k + c_k)     a head's residual blocks; M, c start at zero
    Z   = AutoEmbedding([e_1 .. e_K])   the heads of one anchor attend to each other
    logits_k = W norm(Z_k)              W: the target's own head; norm: a copy of its final norm

SA1 and SA2 are clones of the target's last two decoder layers. Without them and the block this is
Medusa.

From the paper: the two-stage causal adaptation of hidden state and sampled token, and the
bidirectional block after it. Ours: F as one linear map, the assignment of heads to stages, cloned
layers, tied head, reduced vocabulary, and the coordinates (see `adapted`).

The caches of the adaptation layers hold only accepted tokens, so they are never cropped.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from backend.decoding.target_model import TargetModel
from backend.drafters.medusa import MedusaDrafter
from backend.drafters.registry import drafter

HEAD_WIDTH = 64  # approximate size of an attention head


class AutoEmbedding(nn.Module):
    """Bidirectional attention between the heads of one anchor: [n, K, d] -> [n, K, d].

        Y   = Z + P                            P [K, d] learned: head position encoding
        Y'  = Y  + MHA(norm Y)                 the last projections of both sums start at zero
        Y'' = Y' + FFN(norm Y')                FFN: d -> 4 d -> d

    The block is from the paper; its sizes and initialization are ours."""

    def __init__(self, width: int, heads: int, dtype: torch.dtype) -> None:
        super().__init__()

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, dtype=dtype)

        counts = range(max(1, width // HEAD_WIDTH), 0, -1)
        self.attention_heads = next(n for n in counts if width % n == 0)
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


@drafter("amphista", adaptation_layers=2)
class AmphistaDrafter(MedusaDrafter):
    """Drafter of the paper, complete or without one of its parts."""

    def build(self, target: TargetModel, dtype: torch.dtype) -> None:
        super().build(target, dtype)
        self.encoder = None
        if self.config.ablation != "adaptation only":
            self.encoder = AutoEmbedding(target.width, self.config.heads, dtype)

    def slots(self, stages: list[Tensor]) -> Tensor:
        """Return one vector per head [n, K, d]. The first half of the heads reads the first of the
        stages [n, d], the other half the last one."""
        heads = self.config.heads
        early = heads // 2 if len(stages) == 2 else 0
        slots = self.heads(torch.stack([stages[0]] * early + [stages[-1]] * (heads - early), 1))
        return self.normed(slots if self.encoder is None else self.encoder(slots))
