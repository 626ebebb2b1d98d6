"""A pass over segments of many sequences: of the native decoder, where that runs the model, or of
PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakSet

import torch

from backend.decoding.draft_tree import NO_TREE
from backend.decoding.native.cache import (
    CacheBlock,
    CacheBlocks,
    DecodingCache,
    NativeCache,
    blocks_for,
)
from backend.decoding.native.families import head_size
from backend.decoding.native.library import BLOCK
from backend.decoding.native.model import NativeModel, Segment
from backend.decoding.target_model import Read, TargetModel
from backend.models.kv_cache import PreallocatedCache, StackedCache


class Passes(Protocol):
    """How a model computes, and what its caches need.

    Attributes:
        blocks: those of its caches, which sequences share; None where they cannot.
        block_size: bytes of a block; `used`: number of blocks in memory.
        words: what else there is to say of its texts.
    """

    block_size: int
    words: str

    @property
    def blocks(self) -> CacheBlocks | None: ...

    @property
    def used(self) -> int: ...

    def new_cache(self, capacity: int, held: Sequence[CacheBlock]) -> DecodingCache:
        """A cache that begins with the tokens of these blocks."""

    def missing(self, cache: DecodingCache, tokens: int) -> int:
        """Blocks that as many more tokens would need."""

    def run(self, segments: Sequence[Segment]) -> list[Read]:
        """Hidden states [n, d] of each segment, and its logits [read_out, V]."""


def passes_of(target: TargetModel) -> Passes:
    return NativePasses(target.native) if target.native else TorchPasses(target)


class NativePasses:
    """Of the native decoder: all sequences at once."""

    words = ""

    def __init__(self, model: NativeModel) -> None:
        self._model, self.blocks = model, model.new_blocks()
        self.block_size = self.blocks.size

    @property
    def used(self) -> int:
        return self.blocks.used

    def new_cache(self, capacity: int, held: Sequence[CacheBlock]) -> NativeCache:
        return self._model.new_cache(capacity, self.blocks, held)

    def missing(self, cache: DecodingCache, tokens: int) -> int:
        assert isinstance(cache, NativeCache)
        return cache.missing(tokens)

    def run(self, segments: Sequence[Segment]) -> list[Read]:
        hidden, logits = self._model.forward_segments(segments)
        states = hidden.split([len(segment.ids) for segment in segments])
        return list(zip(states, logits.split([x.read_out for x in segments]), strict=True))


class TorchPasses:
    """Of the model's own forward: one for those that append a token, one for each of the others. A
    cache has memory for all its capacity."""

    blocks: CacheBlocks | None = None
    words = "; beside others a text may differ where two tokens are nearly equally likely"

    def __init__(self, target: TargetModel) -> None:
        self._target = target
        config = target.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        row = 2 * target.layers * heads * head_size(config)
        self.block_size = row * BLOCK * target.dtype.itemsize
        self._caches = WeakSet[PreallocatedCache]()
        self._stacked: StackedCache | None = None

    @property
    def used(self) -> int:
        return sum(blocks_for(cache.capacity) for cache in self._caches)

    def new_cache(self, capacity: int, held: Sequence[CacheBlock]) -> PreallocatedCache:
        cache = PreallocatedCache(self._target.layers, capacity)
        self._caches.add(cache)
        return cache

    def missing(self, cache: DecodingCache, tokens: int) -> int:
        return 0

    def run(self, segments: Sequence[Segment]) -> list[Read]:
        single = [len(x.ids) == 1 and x.cache.length > 0 for x in segments]
        if sum(single) < 2:
            return [self._read(segment) for segment in segments]
        stacked = iter(self._append([x for x, one in zip(segments, single, strict=True) if one]))
        return [
            next(stacked) if one else self._read(segment)
            for segment, one in zip(segments, single, strict=True)
        ]

    def _read(self, segment: Segment) -> Read:
        cache = segment.cache
        assert isinstance(cache, PreallocatedCache)
        if len(segment.ids) == 1 or segment.tree:
            hidden, logits = self._target.verify(segment.ids, segment.tree or NO_TREE, cache)
            return hidden, logits[len(logits) - segment.read_out :]
        ids = torch.tensor([segment.ids], device=self._target.device)
        hidden = self._target.hidden(ids, cache)[0]
        return hidden, self._target.logits(hidden[len(hidden) - segment.read_out :])

    def _append(self, segments: Sequence[Segment]) -> list[Read]:
        """One token each."""
        target, caches = self._target, [x.cache for x in segments]
        rows = [cache for cache in caches if isinstance(cache, PreallocatedCache)]
        if self._stacked is None or not self._stacked.holds(rows):
            self._stacked = StackedCache(rows)
        lengths = self._stacked.lengths()
        columns = torch.arange(int(lengths.max()) + 1, device=target.device)
        distance = (lengths[:, None] - columns)[:, None, None]
        mask = torch.zeros(distance.shape, dtype=target.dtype, device=target.device)
        mask = mask.masked_fill_(distance < 0, torch.finfo(mask.dtype).min)
        visible = target.windowed(mask, distance >= target.window) if target.window else mask
        ids = torch.tensor([segment.ids for segment in segments], device=target.device)
        hidden = target.hidden(ids, self._stacked, lengths[:, None], visible)
        self._stacked.appended()
        logits = target.logits(hidden[:, 0])
        return [(hidden[n], logits[n : n + x.read_out]) for n, x in enumerate(segments)]
