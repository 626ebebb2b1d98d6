"""What drafters with adaptation layers share (ours): coordinates, fusion, clones, read-out, start.

    u_i = F [h_i ; E x_{i+1}]          a_i = SA(u_<=i)         causal, its own key-value cache

All vectors are in standardized coordinates, each channel divided by its root mean square in the
target model (`*_scale`), because channels of the residual stream differ by factors of a thousand.
The inputs of a clone are multiplied back, so it sees what it saw in the target model.

Initialization before training (ours). The scales of the coordinates are root mean squares over some
text. The first fusion is fitted by ridge regression to what the cloned layer reads in the target
model, one position ahead:

    F1 = argmin  mean_i |F [h_i ; E x_{i+1}] - r_{i+1}|^2  +  ridge |F|^2

with r the residual stream that enters the first cloned layer, all in standardized coordinates. Even
before training, SA1 and SA2 then see roughly what they saw in the target model, and head 1 predicts
roughly as its last layers would. Without the sampled token the regression target is r_i.

A sequential drafter makes its tree depth by depth, each token from the path before it. In
`anchor_slots` the path is that of the text, since decoding goes on only behind draft tokens that
were right.
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

FIT_TOKENS = 6144  # twice as many explain 46 % instead of 42 %, and the training makes up for it
RIDGE = 0.3
UNSEEN = 10  # one row in so many is left out, to judge the fit by
MIN_SCALE = 1e-4  # relative to the mean: a channel that is always zero must not be divided by zero


def ridge(inputs: Tensor, outputs: Tensor, strength: float = RIDGE) -> tuple[Tensor, float]:
    """The map [out, in] from inputs [N, in] to outputs [N, out], and the share of the outputs' mean
    square it explains on the last rows, which it was not fitted to."""
    seen = len(inputs) - len(inputs) // UNSEEN
    x, y = inputs[:seen], outputs[:seen]
    gram = x.T @ x / len(x)
    gram.diagonal().add_(strength)
    weight = torch.linalg.solve(gram, x.T @ y / len(x)).T
    x, y = (inputs[seen:], outputs[seen:]) if seen < len(inputs) else (x, y)
    return weight, 1 - ((y - x @ weight.T).square().mean() / y.square().mean()).item()


def channel_scale(values: Tensor) -> Tensor:
    """Root mean square of each column of [N, c]."""
    scale = values.square().mean(0).sqrt()
    return scale.clamp_(min=MIN_SCALE * scale.mean().item() or 1.0)


def collect_states(
    target: TargetModel, sequences: Sequence[Tensor], block: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, embeddings and inputs of `block` (None: the hidden states again) over
    `sequences` (token ids [L] each): [N, d] float32, rows of all. The first token of a sequence
    counts as successor of the last one before it; there are few."""
    ids = [sequence.to(target.device) for sequence in sequences]
    read = _read_natively if target.native and block else _read
    hidden, streams = zip(*(read(target, each, block) for each in ids), strict=True)
    embedded = torch.cat([target.embed(each).float() for each in ids])
    return torch.cat(hidden), embedded, torch.cat(streams)


def _read(target: TargetModel, ids: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    """Hidden states of a text [L] and inputs of `block`; None: the hidden states again."""
    streams: list[Tensor] = []
    module = decoder_blocks(target.model)[block] if block is not None else nn.Identity()

    def see(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        streams.append(states[0].float())

    hook = module.register_forward_pre_hook(see, with_kwargs=True)
    try:
        hidden = target.hidden(ids[None])[0].float()
    finally:
        hook.remove()
    return hidden, streams[0] if streams else hidden


def _read_natively(target: TargetModel, ids: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    assert target.native and block
    before, behind = target.native.part(0, block), target.native.part(block, target.layers)
    stream = before.read(ids, before.new_cache(len(ids)))
    return behind(stream, behind.new_cache(len(ids))), stream.float()


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
        """Round linears and read-out to 8 bits where the target runs natively; see `use_native`."""
        if not target.native:
            return False
        self.reader = plain_linear(self.read_out, self.read_bias)
        self.split_blocks()
        use_native(self, target)
        return True

    def split_blocks(self) -> None:
        """Make linears of what is none."""

    def copied_parameters(self) -> list[nn.Parameter]:
        return [*self.layers.parameters(), *self.norm.parameters()]


@dataclass
class InnerNodes:
    """The inner nodes of a tree that is being drafted, parents before children, the root (x_{i+1})
    first.

    Attributes:
        tokens: [n, d] embeddings of the last token of each path.
        slots: [n, d] what that token was read from; a_i for the root.
        new: number of nodes of the last depth.
    """

    paths: list[Path]
    tokens: Tensor
    slots: Tensor
    new: int = 1

    def grow(self, paths: list[Path], tokens: Tensor, slots: Tensor) -> None:
        self.paths += paths
        self.tokens, self.slots = torch.cat([self.tokens, tokens]), torch.cat([self.slots, slots])
        self.new = len(paths)

    def lineage(self, path: Path) -> list[int]:
        """The nodes from the root to `path`."""
        return [self.paths.index(path[:depth]) for depth in range(len(path) + 1)]


class SequentialDrafter(AdaptedDrafter):
    """A drafter in which every node of a tree is predicted from the path to it."""

    @abstractmethod
    def next_slots(self, inner: InnerNodes, caches: list[DecodingCache]) -> Tensor:
        """Vectors [m, d] for the children of the m new inner nodes; the caches stay as they are."""

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
            for path, found in zip(level, self.candidates(slots, policy.ranks), strict=True):
                for rank, (token, chance) in enumerate(found):
                    tokens[*path, rank], chances[*path, rank] = token, chances[path] * chance
            parents, level = level, policy.inner(chances, depth)
            if not level or depth == self.config.heads:
                break
            chosen = torch.tensor([tokens[path] for path in level], device=hidden.device)
            before = slots[[parents.index(path[:-1]) for path in level]]
            inner.grow(level, embed(chosen).to(slots.dtype), before)
        tree = policy.tree(chances)
        return tree, [tokens[path] for path in tree.paths]
