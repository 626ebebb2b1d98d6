"""The drafter: guesses the next K tokens in one parallel pass.

Anchor i: the tokens up to x_{i+1} are known. Head k guesses x_{i+1+k}, k = 1..K. With h_i the
base's last hidden state and E its input embedding, both frozen:

    u_i = F1 [h_i ; E x_{i+1}]          a_i = SA1(u_<=i)       causal, its own key-value cache
    v_i = F2 [a_i ; E x_{i+1}]          b_i = SA2(v_<=i)       causal, its own key-value cache
    s_k = a_i  for k <= K/2, else b_i   (staged; else all b_i)
    e_k = s_k + SiLU(M_k s_k + c_k)     a head's residual blocks; M, c start at zero
    Z   = AutoEmbedding([e_1 .. e_K])   the heads of one anchor attend to each other
    logits_k = W norm(Z_k)              W: the base's own head; norm: a copy of its final norm

SA1 and SA2 are clones of the base's last two decoder layers. Without adaptation layers and encoder
this is Medusa: e_k = h_i + SiLU(M_k h_i + c_k), logits_k = W e_k, since h_i is normed already.

What is the paper's (Amphista, arXiv 2406.13170): the two-stage causal adaptation of hidden state
and sampled token, and the bi-directional block after it. Ours: F as one linear map, the division of
heads, cloned layers, tied head, reduced vocabulary, and the coordinates. All vectors are kept in
standardised coordinates, each channel divided by its root mean square in the base (`scales`), since
the residual stream has channels that differ by factors of a thousand; a clone gets its inputs
multiplied back and so sees what it saw in the base.

The adaptation caches hold accepted tokens only: they are never cropped or gathered.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from backend.methods.amphista.config import DrafterConfig
from backend.methods.amphista.drafter.adaptation import ClonedLayer, final_norm
from backend.methods.amphista.drafter.auto_embedding import AutoEmbedding
from backend.methods.amphista.target_model import TargetModel
from backend.models.blocks import decoder_blocks
from backend.models.kv_cache import PreallocatedCache


class Heads(nn.Module):
    """The residual blocks of all heads: [n, K, d] -> [n, K, d], each head its own weights."""

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, heads, width, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(layers, heads, 1, width, dtype=dtype))
        self.packed = nn.ModuleList()  # of every layer its heads, once they are light

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


class Drafter(nn.Module):
    """The trainable module, in the dtype it is made in, on the base's device.

    Args:
        vocabulary: ids [v] that can be guessed; their rows of the base's head are gathered once.

    Attributes:
        hidden_scale, stream_scale: [d] root mean squares of h and of the residual stream;
        token_scale: [1] that of the embeddings. All 1 until `initial.prepare` has measured them.
    """

    hidden_scale: Tensor
    stream_scale: Tensor
    token_scale: Tensor
    vocabulary: Tensor

    def __init__(
        self,
        config: DrafterConfig,
        target: TargetModel,
        vocabulary: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config, self.width = config, target.width
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
        self.register_buffer("vocabulary", vocabulary.long())
        self.requires_grad_().to(target.device)
        rows, bias = self.vocabulary, target.head.bias
        self.read_out = target.head.weight.detach()[rows]  # [v, d], in the base's dtype
        self.read_bias = None if bias is None else bias.detach()[rows]
        self.reader: nn.Module | None = None  # the same rows, once they are light

    def new_caches(self, capacity: int) -> list[PreallocatedCache]:
        """One empty cache for each adaptation layer."""
        return [PreallocatedCache(1, capacity) for _ in self.layers]

    def stages(
        self, hidden: Tensor, embedded: Tensor, caches: list[PreallocatedCache] | None = None
    ) -> list[Tensor]:
        """What the heads read: the outputs of every adaptation layer, or the hidden states.

        Args:
            hidden, embedded: [b, n, d] states of new anchors, embeddings of the tokens after them.
            caches: of the anchors before; None: `hidden` begins at the first anchor.
        """
        state, found = hidden / self.hidden_scale, []
        token = embedded / self.token_scale
        for number, layer in enumerate(self.layers):
            if self.config.sampled_token:
                state = self.fusions[number](torch.cat([state, token], -1))
            elif number == 0:
                state = self.fusions[0](state)
            cache = caches[number] if caches else None
            state = layer(state * self.stream_scale, cache) / self.stream_scale
            found.append(state)
        return found or [state]

    def slots(self, stages: list[Tensor]) -> Tensor:
        """The heads' vectors of n anchors, stages [n, d] each: [n, K, d], ready to be read out."""
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

    def logits(self, slots: Tensor) -> Tensor:
        """[..., d] -> [..., v] over the draft vocabulary."""
        slots = slots.to(self.read_out.dtype)
        if self.reader is None:
            return linear(slots, self.read_out, self.read_bias)
        read: Tensor = self.reader(slots)
        return read

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """Logits [b, n, K, v] of every anchor of whole sequences [b, n, d]."""
        stages = [stage.flatten(0, 1) for stage in self.stages(hidden, embedded)]
        return self.logits(self.slots(stages)).unflatten(0, hidden.shape[:2])

    def copied_parameters(self) -> list[nn.Parameter]:
        """Those that began as the base's."""
        return [*self.layers.parameters(), *self.norm.parameters()]

    def parameter_count(self) -> int:
        """Weights added to the base."""
        return sum(parameter.numel() for parameter in self.parameters())


def _encoder(config: DrafterConfig, width: int, dtype: torch.dtype) -> AutoEmbedding | None:
    if not config.encoder:
        return None
    inner = config.encoder_width or width
    return AutoEmbedding(width, inner, config.heads, config.position, dtype)


def head_layers(config: DrafterConfig, target: TargetModel) -> int:
    """Residual blocks of a head; where the config leaves them open, as many as give a drafter of
    heads alone the parameters of a whole one."""
    if config.head_layers:
        return config.head_layers
    d, inner = target.width, config.encoder_width or target.width
    blocks = decoder_blocks(target.model)[-2:]
    cloned = sum(parameter.numel() for parameter in blocks.parameters())
    encoder = 12 * inner**2 + (2 * d * inner if inner != d else 0)
    one = config.heads * (d**2 + d)
    return max(1, round((cloned + 4 * d**2 + encoder + one) / one))
