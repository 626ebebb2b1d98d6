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
layers, tied head, reduced vocabulary, and the coordinates. All vectors are in standardised
coordinates, each channel divided by its root mean square in the target model (`*_scale`), because
channels of the residual stream differ by factors of a thousand. The inputs of a clone are
multiplied back, so it sees what it saw in the target model.

The adaptation caches hold accepted tokens only; they are never cropped or gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from backend.methods.amphista.config import DrafterConfig
from backend.methods.amphista.drafter.adaptation import ClonedLayer, final_norm
from backend.methods.amphista.drafter.auto_embedding import AutoEmbedding
from backend.methods.amphista.drafter.initialization import (
    CollectedStates,
    channel_scale,
    collect_states,
    ridge,
)
from backend.methods.amphista.drafter.int4 import pack_linears, packed_linear, worth_packing
from backend.methods.amphista.drafter.native import use_native
from backend.methods.amphista.drafter.registry import Drafter, drafter
from backend.methods.amphista.target_model import DecodingCache, TargetModel
from backend.models.blocks import decoder_blocks


class Heads(nn.Module):
    """The residual blocks of all heads, each with its own weights: [n, K, d] -> [n, K, d]."""

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, heads, width, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(layers, heads, 1, width, dtype=dtype))
        self.packed = nn.ModuleList()  # heads of each layer on packed weights

    def forward(self, states: Tensor) -> Tensor:
        states = states.transpose(0, 1)  # [K, n, d]
        for number in range(len(self.weight)):
            states = states + silu(self._affine(number, states))
        return states.transpose(0, 1)

    def _affine(self, layer: int, states: Tensor) -> Tensor:
        if not self.packed:
            return torch.baddbmm(self.bias[layer], states, self.weight[layer])
        heads: list[nn.Module] = list(self.packed[layer].children())
        return torch.stack([head(own) for head, own in zip(heads, states, strict=True)])


@drafter("amphista")
class AmphistaDrafter(Drafter):
    """The drafter of the paper, and Medusa as the special case without layers and encoder.

    Attributes:
        hidden_scale, stream_scale: [d] root mean squares of h and of the residual stream;
        token_scale: [1] that of the embeddings. All 1 until `initialize` has measured them.
    """

    hidden_scale: Tensor
    stream_scale: Tensor
    token_scale: Tensor

    def __init__(
        self,
        config: DrafterConfig,
        target: TargetModel,
        vocabulary: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(config, target, vocabulary, dtype)
        d, depth = target.width, config.adaptation_layers
        blocks = range(target.layers - depth, target.layers)
        self.layers = nn.ModuleList(ClonedLayer(target.model, block, dtype) for block in blocks)
        inputs = [2 * d] * depth if config.sampled_token else [d] * min(depth, 1)
        self.fusions = nn.ModuleList(nn.Linear(n, d, bias=False, dtype=dtype) for n in inputs)
        self.heads = Heads(head_layers(config, target), config.heads, d, dtype)
        self.encoder = _encoder(config, d, dtype)
        norm = deepcopy(final_norm(target.model)[1]) if depth else nn.Identity()
        self.norm = norm.to(dtype)
        for name, size in (("hidden_scale", d), ("stream_scale", d), ("token_scale", 1)):
            self.register_buffer(name, torch.ones(size, dtype=dtype))
        self.requires_grad_().to(target.device)
        self.reader: nn.Module | None = None  # packed rows of the head, see `compress`

    def new_caches(self, capacity: int) -> list[DecodingCache]:
        """One empty cache for each adaptation layer."""
        layers: Any = self.layers
        return [layer.new_cache(capacity) for layer in layers]

    def stages(
        self, hidden: Tensor, embedded: Tensor, caches: list[DecodingCache] | None = None
    ) -> list[Tensor]:
        """The outputs of every adaptation layer, or the hidden states without such layers."""
        state, outputs = hidden / self.hidden_scale, []
        token = embedded / self.token_scale
        for number, layer in enumerate(self.layers):
            if self.config.sampled_token:
                state = self.fusions[number](torch.cat([state, token], -1))
            elif number == 0:
                state = self.fusions[0](state)
            cache = caches[number] if caches else None
            state = layer(state * self.stream_scale, cache) / self.stream_scale
            outputs.append(state)
        return outputs or [state]

    def slots(self, stages: list[Tensor]) -> Tensor:
        """The vectors of all heads, after residual blocks, encoder and norm."""
        heads, early = self.config.heads, 0
        if self.config.staged and len(stages) == 2:
            early = heads // 2
        states = torch.stack([stages[0]] * early + [stages[-1]] * (heads - early), 1)
        slots = self.heads(states)
        if self.encoder is not None:
            slots = self.encoder(slots)
        scale = self.stream_scale if len(self.layers) else self.hidden_scale
        normed: Tensor = self.norm(slots * scale)
        return normed

    def head(self, slots: Tensor) -> Tensor:
        """W [..., d] (+ b), from packed rows where there are some."""
        if self.reader is None:
            return super().head(slots)
        raw: Tensor = self.reader(slots)
        return raw

    @torch.no_grad()
    def initialize(self, target: TargetModel, sequences: Sequence[Tensor], fitted: bool) -> float:
        """Measure the scales and set the fusions; see `initialization`."""
        depth = self.config.adaptation_layers
        block = target.layers - depth if depth else None
        states = collect_states(target, sequences, block)
        self.hidden_scale.copy_(channel_scale(states.hidden))
        self.token_scale.fill_(channel_scale(states.embedded.reshape(-1, 1)).item())
        if not depth:
            return 0.0
        self.stream_scale.copy_(channel_scale(states.stream))
        fusions = list(self.fusions.parameters())
        for fusion in fusions:
            fusion.copy_(torch.eye(*fusion.shape))
        if not fitted:
            return 0.0
        weight, explained = ridge(*self._fusion_pairs(states))
        fusions[0].copy_(weight)
        return explained

    def _fusion_pairs(self, states: CollectedStates) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the first fusion, rows of anchors."""
        inputs, targets = states.hidden / self.hidden_scale, states.stream / self.stream_scale
        if not self.config.sampled_token:
            return inputs, targets
        tokens = states.embedded / self.token_scale
        return torch.cat([inputs[:-1], tokens[1:]], -1), targets[1:]

    @torch.no_grad()
    def compress(self, target: TargetModel) -> bool:
        """Pack all linears but the fusions, the head blocks and the read-out; see `int4`.

        Done only on a CPU in bfloat16, where the rows of a head are few enough for the operator to
        be fast.
        """
        rows = self.read_out
        if not worth_packing(rows):
            return False
        pack_linears(self, keep="fusions.")
        self.reader = packed_linear(rows, self.read_bias)
        for weights, biases in zip(self.heads.weight, self.heads.bias, strict=True):
            blocks = [packed_linear(w.T, b[0]) for w, b in zip(weights, biases, strict=True)]
            if None in blocks:
                break
            self.heads.packed.append(nn.ModuleList(filter(None, blocks)))
        if target.native:
            use_native(self, target)
        return True

    def copied_parameters(self) -> list[nn.Parameter]:
        """Parameters that were copied from the target model."""
        return [*self.layers.parameters(), *self.norm.parameters()]


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
