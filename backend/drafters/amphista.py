"""Amphista (Li et al., arXiv 2406.13170): draft the next K tokens in one parallel pass.

Anchor i: the tokens up to x_{i+1} are known. Head k predicts x_{i+1+k}, k = 1..K. With h_i the
target model's last hidden state and E its input embedding, both frozen:

    u_i = F1 [h_i ; E x_{i+1}]          a_i = SA1(u_<=i)       causal, its own key-value cache
    v_i = F2 [a_i ; E x_{i+1}]          b_i = SA2(v_<=i)       causal, its own key-value cache
    s_k = a_i  for k <= K/2, else b_i   (staged; else all b_i)
    e_k = s_k + SiLU(M_k s_k + c_k)     a head's residual blocks; M, c start at zero
    Z   = AutoEmbedding([e_1 .. e_K])   the heads of one anchor attend to each other
    logits_k = W norm(Z_k)              W: the target's own head; norm: a copy of its final norm

SA1 and SA2 are clones of the target's last two decoder layers. Without adaptation layers and
encoder this is Medusa: e_k = h_i + SiLU(M_k h_i + c_k), logits_k = W e_k, as h_i is normed already.

From the paper: the two-stage causal adaptation of hidden state and sampled token, and the
bi-directional block after it. Ours: F as one linear map, the assignment of heads to stages, cloned
layers, tied head, reduced vocabulary, and the coordinates (see `adapted`).

The adaptation caches hold accepted tokens only; they are never cropped or gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from backend.decoding.target_model import DecodingCache, TargetModel
from backend.drafters.config import DrafterConfig
from backend.drafters.layers.adapted import AdaptedDrafter
from backend.drafters.layers.auto_embedding import AutoEmbedding
from backend.drafters.layers.native import plain_linear
from backend.drafters.registry import ParallelDrafter, drafter
from backend.models.blocks import decoder_blocks


class Heads(nn.Module):
    """The residual blocks of all heads, each with its own weights: [n, K, d] -> [n, K, d]."""

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, heads, width, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(layers, heads, 1, width, dtype=dtype))
        self.linears = nn.ModuleList()  # of the heads of each layer, once split

    def forward(self, states: Tensor) -> Tensor:
        states = states.transpose(0, 1)  # [K, n, d]
        for number in range(len(self.weight)):
            states = states + silu(self._affine(number, states))
        return states.transpose(0, 1)

    def split(self) -> None:
        """Run on a linear for each block."""
        for weights, biases in zip(self.weight, self.bias, strict=True):
            blocks = (plain_linear(w.T, b[0]) for w, b in zip(weights, biases, strict=True))
            self.linears.append(nn.ModuleList(blocks))

    def _affine(self, layer: int, states: Tensor) -> Tensor:
        if not self.linears:
            return torch.baddbmm(self.bias[layer], states, self.weight[layer])
        heads: list[nn.Module] = list(self.linears[layer].children())
        return torch.stack([head(own) for head, own in zip(heads, states, strict=True)])


@drafter("amphista")
class AmphistaDrafter(AdaptedDrafter, ParallelDrafter):
    """The drafter of the paper, and Medusa as the special case without layers and encoder."""

    def __init__(
        self,
        config: DrafterConfig,
        target: TargetModel,
        vocabulary: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        d, depth = target.width, config.adaptation_layers
        fusions = depth if config.sampled_token else min(depth, 1)
        super().__init__(config, target, vocabulary, dtype, fusions)
        self.heads = Heads(head_layers(config, target), config.heads, d, dtype)
        self.encoder = _encoder(config, d, dtype)
        self.requires_grad_().to(target.device)

    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, places: Tensor
    ) -> Tensor:
        """The slots of chosen anchors; see `Drafter`."""
        return self.slots([stage[rows, places] for stage in self.stages(hidden, embedded)])

    def draft_slots(self, hidden: Tensor, embedded: Tensor, caches: list[DecodingCache]) -> Tensor:
        """The slots of the last anchor; see `ParallelDrafter`."""
        stages = self.stages(hidden, embedded, caches)
        return self.slots([stage[0, -1:] for stage in stages])[0]

    def slots(self, stages: list[Tensor]) -> Tensor:
        """One vector per head, after residual blocks, encoder and norm: stages [n, d] ->
        [n, K, d]."""
        heads, early = self.config.heads, 0
        if self.config.staged and len(stages) == 2:
            early = heads // 2
        states = torch.stack([stages[0]] * early + [stages[-1]] * (heads - early), 1)
        slots = self.heads(states)
        if self.encoder is not None:
            slots = self.encoder(slots)
        return self.normed(slots)

    def split_blocks(self) -> None:
        """Of the residual blocks of the heads."""
        self.heads.split()


def _encoder(config: DrafterConfig, width: int, dtype: torch.dtype) -> AutoEmbedding | None:
    if not config.encoder:
        return None
    inner = config.encoder_width or width
    return AutoEmbedding(width, inner, config.heads, config.position, dtype)


def head_layers(config: DrafterConfig, target: TargetModel) -> int:
    """Residual blocks per head; for 0 in the config, as many as give a drafter of heads alone the
    parameter count of a full one."""
    if config.head_layers:
        return config.head_layers
    d, inner = target.width, config.encoder_width or target.width
    blocks = decoder_blocks(target.model)[-2:]
    cloned = sum(parameter.numel() for parameter in blocks.parameters())
    encoder = 12 * inner**2 + (2 * d * inner if inner != d else 0)
    one = config.heads * (d**2 + d)
    return max(1, round((cloned + 4 * d**2 + encoder + one) / one))
