"""Medusa (Cai et al., arXiv 2401.10774): independent heads on the last hidden state.

    e_k = h_i + SiLU(M_k h_i + c_k)     residual blocks of head k; M, c start at zero
    logits_k = W e_k                    W: the target's own head; h_i is already normed

Ours: the tied head and the reduced vocabulary. "as many parameters" repeats the residual blocks
until the drafter is as large as Amphista's, for a fair comparison.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from backend.decoding.native.cache import DecodingCache
from backend.decoding.target_model import TargetModel
from backend.drafters.adaptation import plain_linear
from backend.drafters.adapted import AdaptedDrafter
from backend.drafters.registry import ParallelDrafter, drafter
from backend.models.blocks import decoder_blocks


class ResidualHeads(nn.Module):
    """Residual blocks of all heads, with separate weights: [n, K, d] -> [n, K, d]."""

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, heads, width, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(layers, heads, 1, width, dtype=dtype))
        self.linears = nn.ModuleList()  # for each layer the linears of all heads; filled by `split`

    def forward(self, states: Tensor) -> Tensor:
        states = states.transpose(0, 1)  # [K, n, d]
        for layer, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            if self.linears:
                blocks = zip(self.linears[layer].children(), states, strict=True)
                states = states + silu(torch.stack([block(state) for block, state in blocks]))
            else:
                states = states + silu(torch.baddbmm(bias, states, weight))
        return states.transpose(0, 1)

    def split(self) -> None:
        """Split the stacked weights into one linear per head and layer."""
        for weights, biases in zip(self.weight, self.bias, strict=True):
            blocks = (plain_linear(w.T, b[0]) for w, b in zip(weights, biases, strict=True))
            self.linears.append(nn.ModuleList(blocks))


@drafter("medusa")
class MedusaDrafter(AdaptedDrafter, ParallelDrafter):
    """Drafter with residual heads, all in parallel. Amphista adds layers before and after them."""

    def build(self, target: TargetModel, dtype: torch.dtype) -> None:
        super().build(target, dtype)
        config, layers, d = self.config, 1, target.width
        if config.ablation == "as many parameters":  # as Amphista: clones, fusions, encoder, heads
            cloned = sum(p.numel() for p in decoder_blocks(target.model)[-2:].parameters())
            per_layer = config.heads * (d**2 + d)
            layers = max(1, round((cloned + 4 * d**2 + 12 * d**2 + per_layer) / per_layer))
        self.heads = ResidualHeads(layers, config.heads, d, dtype)

    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, positions: Tensor
    ) -> Tensor:
        return self.slots([stage[rows, positions] for stage in self.stages(hidden, embedded)])

    def draft_slots(self, hidden: Tensor, embedded: Tensor, caches: list[DecodingCache]) -> Tensor:
        stages = self.stages(hidden, embedded, caches)
        return self.slots([stage[0, -1:] for stage in stages])[0]

    def slots(self, stages: list[Tensor]) -> Tensor:
        """Return one vector per head [n, K, d], from the last of the stages [n, d]."""
        return self.normed(self.heads(torch.stack([stages[-1]] * self.config.heads, 1)))

    def split_blocks(self) -> None:
        """Split the residual blocks of the heads into linears."""
        self.heads.split()
