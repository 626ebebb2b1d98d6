"""What drafters with adaptation layers share (ours): coordinates, fusion, clones, read-out, start.

    u_i = F [h_i ; E x_{i+1}]          a_i = SA(u_<=i)         causal, its own key-value cache

All vectors are in standardised coordinates, each channel divided by its root mean square in the
target model (`*_scale`), because channels of the residual stream differ by factors of a thousand.
The inputs of a clone are multiplied back, so it sees what it saw in the target model.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from backend.decoding.native.cache import DecodingCache
from backend.decoding.native.top_k import top_k
from backend.decoding.target_model import TargetModel
from backend.drafters.layers.adaptation import ClonedLayer, final_norm
from backend.drafters.layers.initialization import channel_scale, collect_states, ridge
from backend.drafters.layers.native import plain_linear, use_native
from backend.drafters.registry import Drafter


class AdaptedDrafter(Drafter):
    """A drafter of cloned decoder layers, each behind a fusion, which reads out with the target's
    norm. Without the sampled token there is one fusion, and the layers follow one another directly.
    `hidden_scale`, `stream_scale`: [d] root mean squares of h and of the residual stream;
    token_scale: [1] that of the embeddings. All 1 until `initialize` has measured them."""

    hidden_scale: Tensor
    stream_scale: Tensor
    token_scale: Tensor

    def build(self, target: TargetModel, dtype: torch.dtype) -> None:
        d, depth = target.width, self.config.adaptation_layers
        blocks = range(target.layers - depth, target.layers)
        self.layers = nn.ModuleList(ClonedLayer(target.model, block, dtype) for block in blocks)
        self.sampled_token = self.config.ablation != "no sampled token"
        fused, fusions = (2 * d, depth) if self.sampled_token else (d, 1)
        maps = (nn.Linear(fused, d, bias=False, dtype=dtype) for _ in range(fusions))
        self.fusions = nn.ModuleList(maps)
        self._last = target.context - 1
        norm = deepcopy(final_norm(target.model)[1]) if depth else nn.Identity()
        self.norm = norm.to(dtype)
        for name, size in (("hidden_scale", d), ("stream_scale", d), ("token_scale", 1)):
            self.register_buffer(name, torch.ones(size, dtype=dtype))
        self.reader: nn.Module | None = None  # packed rows of the head, see `quantize`

    def new_caches(self, capacity: int) -> list[DecodingCache]:
        layers: Any = self.layers
        return [layer.new_cache(capacity) for layer in layers]

    def fused(self, number: int, state: Tensor, token: Tensor) -> Tensor:
        """F [state ; token] of a fusion, or F state without the sampled token: [..., d]."""
        inputs = torch.cat([state, token], -1) if self.sampled_token else state
        fused: Tensor = self.fusions[number](inputs)
        return fused

    def stages(
        self, hidden: Tensor, embedded: Tensor, caches: Sequence[Any] | None = None
    ) -> list[Tensor]:
        """The outputs of every adaptation layer, or the hidden states without such layers."""
        state, outputs = hidden / self.hidden_scale, []
        token = embedded / self.token_scale
        for number, layer in enumerate(self.layers):
            if number < len(self.fusions):
                state = self.fused(number, state, token)
            cache = caches[number] if caches else None
            state = layer(state * self.stream_scale, cache) / self.stream_scale
            outputs.append(state)
        return outputs or [state]

    def following(
        self,
        normed: Tensor,
        embedded: Tensor,
        caches: Sequence[Any],
        positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """States [b, n, d] of n drafts of each sequence, appended to the anchors in the caches.

        Args:
            normed: [b, n, d] in the place of the unknown hidden states.
            embedded: [b, n, d] of the draft tokens after them.
            positions: [b, n]; those beyond the context are never kept.
            visible: [b, n, cached + n] bool.
        """
        positions = positions.clamp(max=self._last)
        state = self.fused(0, normed / self.hidden_scale, embedded / self.token_scale)
        for layer, cache in zip(self.layers, caches, strict=True):
            state = layer(state * self.stream_scale, cache, positions, visible) / self.stream_scale
        return state

    def normed(self, slots: Tensor) -> Tensor:
        """Slots [..., d] as the head reads them."""
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
    def initialize(self, target: TargetModel, sequences: Sequence[Tensor]) -> float:
        """Measure the scales and set the fusions; see `initialization`."""
        depth = len(self.layers)
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
        inputs, targets = states.hidden / self.hidden_scale, states.stream / self.stream_scale
        if self.sampled_token:
            tokens = states.embedded / self.token_scale
            inputs, targets = torch.cat([inputs[:-1], tokens[1:]], -1), targets[1:]
        weight, explained = ridge(inputs, targets)
        fusions[0].copy_(weight)
        return explained

    @torch.no_grad()
    def quantize(self, target: TargetModel) -> bool:
        """Round linears and read-out to 8 bits where the target runs natively; see `native`."""
        if not target.native:
            return False
        self.reader = plain_linear(self.read_out, self.read_bias)
        self.split_blocks()
        use_native(self, target)
        self.top_k = top_k  # type: ignore[method-assign]
        return True

    def split_blocks(self) -> None:
        """Make linears of what is none."""

    def copied_parameters(self) -> list[nn.Parameter]:
        return [*self.layers.parameters(), *self.norm.parameters()]
