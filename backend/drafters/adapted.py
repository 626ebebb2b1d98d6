"""Base classes of drafters with adaptation layers (ours): coordinates, fusion, cloned layers,
read-out and initialization.

    u_i = F [h_i ; E x_{i+1}]          a_i = SA(u_<=i)         causal, its own key-value cache

All vectors are in standardized coordinates: each channel is divided by its root mean square in the
target model (`*_scale`), because channels of the residual stream differ by factors of a thousand.
The inputs of a cloned layer are multiplied back, so it sees the same inputs as in the target model.

Initialization before training (ours). The scales of the coordinates are root mean squares over some
text. The first fusion is fitted by ridge regression to the inputs of the cloned layer in the target
model, one position ahead:

    F1 = argmin  mean_i |F [h_i ; E x_{i+1}] - r_{i+1}|^2  +  ridge |F|^2

with r the residual stream that enters the first cloned layer, all in standardized coordinates. Even
before training, SA1 and SA2 then see roughly their usual inputs, and head 1 predicts roughly like
the last layers of the target model. Without the sampled token the regression target is r_i.

A sequential drafter builds its tree depth by depth, and predicts each token from the path before
it. In `anchor_slots` the path is the text, because decoding continues only after accepted tokens.
"""

from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.decoding.draft_tree import Path, Tree, TreePolicy
from backend.decoding.native.cache import DecodingCache
from backend.decoding.target_model import TargetModel
from backend.drafters.adaptation import ClonedLayer, final_norm, plain_linear, use_native
from backend.drafters.registry import Drafter, Embed
from backend.models.blocks import decoder_blocks

FIT_TOKENS = 6144  # twice as many explain 46 % instead of 42 %; training makes up for that
RIDGE = 0.3
HELDOUT_INTERVAL = 10  # one row in 10 is held out to evaluate the fit
MIN_SCALE = 1e-4  # relative to the mean; avoids a division by zero for channels that are always 0


def ridge(inputs: Tensor, outputs: Tensor, strength: float = RIDGE) -> tuple[Tensor, float]:
    """Return the map [out, in] from inputs [N, in] to outputs [N, out], and the share of the
    outputs' mean square that it explains on held-out rows."""
    count = len(inputs) - len(inputs) // HELDOUT_INTERVAL
    x, y = inputs[:count], outputs[:count]
    gram = x.T @ x / len(x)
    gram.diagonal().add_(strength)
    weight = torch.linalg.solve(gram, x.T @ y / len(x)).T
    x, y = (inputs[count:], outputs[count:]) if count < len(inputs) else (x, y)
    return weight, 1 - ((y - x @ weight.T).square().mean() / y.square().mean()).item()


def channel_scale(values: Tensor) -> Tensor:
    """Return the root mean square of each column of `values` [N, c]."""
    scale = values.square().mean(0).sqrt()
    return scale.clamp_(min=MIN_SCALE * scale.mean().item() or 1.0)


def collect_states(
    target: TargetModel, sequences: Sequence[Tensor], block: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, embeddings and inputs of `block` (None: the hidden states) over all
    `sequences` (token ids [L] each), [N, d] float32. Boundaries between sequences are ignored,
    because there are few."""
    ids = [sequence.to(target.device) for sequence in sequences]
    read = _read_natively if target.native and block else _read
    hidden, streams = zip(*(read(target, text, block) for text in ids), strict=True)
    embedded = torch.cat([target.embed(text).float() for text in ids])
    return torch.cat(hidden), embedded, torch.cat(streams)


def _read(target: TargetModel, ids: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    """Return the hidden states of a text [L] and the inputs of `block` (None: the hidden
    states)."""
    streams: list[Tensor] = []
    module = decoder_blocks(target.model)[block] if block is not None else nn.Identity()

    def record_input(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        streams.append(states[0].float())

    hook = module.register_forward_pre_hook(record_input, with_kwargs=True)
    try:
        hidden = target.hidden(ids[None])[0].float()
    finally:
        hook.remove()
    return hidden, streams[0] if streams else hidden


def _read_natively(target: TargetModel, ids: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    assert target.native and block
    first, last = target.native.part(0, block), target.native.part(block, target.layers)
    stream = first.read(ids, first.new_cache(len(ids)))
    return last(stream, last.new_cache(len(ids))), stream.float()


class AdaptedDrafter(Drafter):
    """Drafter with cloned decoder layers, each after a fusion, and a copy of the target's final
    norm. Without the sampled token there is one fusion before all layers.

    All scales are 1 until `initialize` measures them.

    Attributes:
        hidden_scale: root mean square [d] of the hidden states.
        stream_scale: root mean square [d] of the residual stream.
        token_scale: root mean square [1] of the embeddings.
    """

    hidden_scale: Tensor
    stream_scale: Tensor
    token_scale: Tensor

    def build(self, target: TargetModel, dtype: torch.dtype) -> None:
        d, depth = target.width, self.config.adaptation_layers
        blocks = range(target.layers - depth, target.layers)
        self.layers = nn.ModuleList(ClonedLayer(target.model, block, dtype) for block in blocks)
        self.sampled_token = self.config.ablation != "no sampled token"
        inputs, fusions = (2 * d, depth) if self.sampled_token else (d, 1)
        maps = (nn.Linear(inputs, d, bias=False, dtype=dtype) for _ in range(fusions))
        self.fusions = nn.ModuleList(maps)
        self._last_position = target.context - 1
        norm = deepcopy(final_norm(target.model)[1]) if depth else nn.Identity()
        self.norm = norm.to(dtype)
        for name, size in (("hidden_scale", d), ("stream_scale", d), ("token_scale", 1)):
            self.register_buffer(name, torch.ones(size, dtype=dtype))
        self.reader: nn.Module | None = None  # quantized read-out; see `quantize`

    def new_caches(self, capacity: int) -> list[DecodingCache]:
        layers: Any = self.layers
        return [layer.new_cache(capacity) for layer in layers]

    def fused(self, number: int, state: Tensor, token: Tensor) -> Tensor:
        """Apply a fusion: F [state ; token], or F state without the sampled token, [..., d]."""
        inputs = torch.cat([state, token], -1) if self.sampled_token else state
        fused: Tensor = self.fusions[number](inputs)
        return fused

    def stages(
        self, hidden: Tensor, embedded: Tensor, caches: Sequence[Any] | None = None
    ) -> list[Tensor]:
        """Return the outputs of every adaptation layer, or the hidden states if there is none."""
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
        """Return the states [b, n, d] of n draft tokens of each sequence, and append them to the
        caches.

        Args:
            normed: states [b, n, d] that replace the unknown hidden states.
            embedded: embeddings [b, n, d] of the draft tokens after them.
            caches: caches of the adaptation layers.
            positions: positions [b, n].
            visible: attention mask [b, n, cached + n] bool.
        """
        # drafts beyond the context are never accepted
        positions = positions.clamp(max=self._last_position)
        state = self.fused(0, normed / self.hidden_scale, embedded / self.token_scale)
        for layer, cache in zip(self.layers, caches, strict=True):
            state = layer(state * self.stream_scale, cache, positions, visible) / self.stream_scale
        return state

    def normed(self, slots: Tensor) -> Tensor:
        """Return slots [..., d] in the coordinates of the head, after the final norm."""
        scale = self.stream_scale if len(self.layers) else self.hidden_scale
        normed: Tensor = self.norm(slots * scale)
        return normed

    def head(self, slots: Tensor) -> Tensor:
        """Return W slots (+ b) [..., v], with the quantized read-out if there is one."""
        if self.reader is None:
            return super().head(slots)
        logits: Tensor = self.reader(slots)
        return logits

    @torch.no_grad()
    def initialize(self, target: TargetModel, sequences: Sequence[Tensor]) -> float:
        """Measure the scales and fit the fusions; see the module."""
        depth = len(self.layers)
        block = target.layers - depth if depth else None
        hidden, embedded, stream = collect_states(target, sequences, block)
        self.hidden_scale.copy_(channel_scale(hidden))
        self.token_scale.fill_(channel_scale(embedded.reshape(-1, 1)).item())
        if not depth:
            return 0.0
        self.stream_scale.copy_(channel_scale(stream))
        fusions = list(self.fusions.parameters())
        for fusion in fusions:
            fusion.copy_(torch.eye(*fusion.shape))
        inputs, targets = hidden / self.hidden_scale, stream / self.stream_scale
        if self.sampled_token:
            tokens = embedded / self.token_scale
            inputs, targets = torch.cat([inputs[:-1], tokens[1:]], -1), targets[1:]
        weight, explained = ridge(inputs, targets)
        fusions[0].copy_(weight)
        return explained

    @torch.no_grad()
    def quantize(self, target: TargetModel) -> bool:
        """Quantize linears and read-out to 8 bits if the target runs natively; see `use_native`."""
        if not target.native:
            return False
        self.reader = plain_linear(self.read_out, self.read_bias)
        self.split_blocks()
        use_native(self, target)
        return True

    def split_blocks(self) -> None:
        """Convert weights that are not linears into linears, so that they can be quantized."""

    def copied_parameters(self) -> list[nn.Parameter]:
        return [*self.layers.parameters(), *self.norm.parameters()]


@dataclass
class InnerNodes:
    """Inner nodes of a tree that is being drafted. The root (x_{i+1}) comes first, and parents
    before children.

    Attributes:
        paths: path of each node.
        tokens: embedding of each node's token, [n, d].
        slots: slot that predicted each node's token, [n, d]; a_i for the root.
        new: number of nodes at the last depth.
    """

    paths: list[Path]
    tokens: Tensor
    slots: Tensor
    new: int = 1

    def grow(self, paths: list[Path], tokens: Tensor, slots: Tensor) -> None:
        """Append the nodes of the next depth."""
        self.paths += paths
        self.tokens, self.slots = torch.cat([self.tokens, tokens]), torch.cat([self.slots, slots])
        self.new = len(paths)

    def lineage(self, path: Path) -> list[int]:
        """Return the nodes from the root to `path`."""
        return [self.paths.index(path[:depth]) for depth in range(len(path) + 1)]


class SequentialDrafter(AdaptedDrafter):
    """Drafter that predicts every node of a tree from the path to it."""

    @abstractmethod
    def next_slots(self, inner: InnerNodes, caches: list[DecodingCache]) -> Tensor:
        """Return slots [m, d] for the children of the m new inner nodes. The caches do not
        change."""

    def draft(
        self,
        hidden: Tensor,
        embedded: Tensor,
        policy: TreePolicy,
        caches: list[DecodingCache],
        embed: Embed,
    ) -> tuple[Tree, list[int]]:
        state = self.stages(hidden, embedded, caches)[-1][0, -1:]
        inner, level = InnerNodes([()], embedded[0, -1:].to(state.dtype), state), list[Path]([()])
        chances: dict[Path, float] = {(): 1.0}
        tokens: dict[Path, int] = {}
        for depth in range(1, self.config.heads + 1):
            slots = self.next_slots(inner, caches)
            for path, candidates in zip(level, self.candidates(slots, policy.ranks), strict=True):
                for rank, (token, chance) in enumerate(candidates):
                    tokens[*path, rank], chances[*path, rank] = token, chances[path] * chance
            parents, level = level, policy.inner(chances, depth)
            if not level or depth == self.config.heads:
                break
            ids = torch.tensor([tokens[path] for path in level], device=hidden.device)
            parent_slots = slots[[parents.index(path[:-1]) for path in level]]
            inner.grow(level, embed(ids).to(slots.dtype), parent_slots)
        tree = policy.tree(chances)
        return tree, [tokens[path] for path in tree.paths]
