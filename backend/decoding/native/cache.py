"""Keys and values in blocks of `BLOCK` tokens, which the caches of sequences with the same
beginning share."""

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise
from typing import TypeAlias
from weakref import WeakSet

import torch

from backend.kernels import library as c
from backend.kernels.library import BLOCK
from backend.models.kv_cache import PreallocatedCache


def blocks_for(tokens: int) -> int:
    """How many blocks hold as many tokens."""
    return -(-tokens // BLOCK)


class CacheBlock:
    """Keys and values [2, layers, kv heads, BLOCK, head] in bfloat16. Once `shared`, it is never
    written again: who would, writes a copy."""

    __slots__ = ("__weakref__", "rows", "shared")

    def __init__(self, size: int) -> None:
        self.rows, self.shared = torch.empty(size, dtype=torch.bfloat16), False


class CacheBlocks:
    """Makes the blocks of some caches of a model; one is freed when no cache holds it any more.
    `size`: bytes of a block. `row`: numbers that are kept for a token."""

    def __init__(self, row: int) -> None:
        self._numbers, self.size = row * BLOCK, 2 * row * BLOCK
        self._live = WeakSet[CacheBlock]()

    @property
    def used(self) -> int:
        """Number of blocks in memory."""
        return len(self._live)

    def new(self, like: CacheBlock | None = None) -> CacheBlock:
        """A block, or a copy of one."""
        block = CacheBlock(self._numbers)
        if like is not None:
            block.rows.copy_(like.rows)
        self._live.add(block)
        return block


class NativeCache:
    """Keys and values of one sequence, of at most `capacity` tokens. `call`: calls a kernel
    on the model. `held`: the beginning of another cache, shared with it."""

    def __init__(
        self,
        call: Callable[..., None],
        blocks: CacheBlocks,
        capacity: int,
        held: Sequence[CacheBlock] = (),
        length: int = 0,
    ) -> None:
        self.call, self.capacity, self._blocks = call, capacity, blocks
        self._held: list[CacheBlock] = []
        self._places = (ctypes.c_void_p * blocks_for(capacity))()
        self.structure = c.Cache(capacity, 0, ctypes.addressof(self._places))
        for place, block in enumerate(held):
            block.shared = True
            self._hold(place, block)
        self.structure.length = length

    @property
    def length(self) -> int:
        return int(self.structure.length)

    def missing(self, tokens: int) -> int:
        """Number of blocks that are allocated if as many tokens are appended."""
        first, end = self.length // BLOCK, blocks_for(self.length + tokens)
        return end - first - sum(not block.shared for block in self._held[first:end])

    def make_room(self, tokens: int) -> None:
        """Have blocks of its own for as many more tokens. Raises ValueError: they do not fit."""
        if self.length + tokens > self.capacity:
            raise ValueError(f"{tokens} more tokens do not fit into the cache")
        self._own(self.length, self.length + tokens)

    def _own(self, start: int, end: int) -> None:
        for place in range(start // BLOCK, blocks_for(end)):
            if place == len(self._held):
                self._hold(place, self._blocks.new())
            elif self._held[place].shared:
                self._hold(place, self._blocks.new(self._held[place]))

    def _hold(self, place: int, block: CacheBlock) -> None:
        self._held[place : place + 1] = [block]
        self._places[place] = block.rows.data_ptr()

    def keep(self, start: int, chosen: Sequence[int]) -> None:
        """Of the rows from `start` on, keep those at `start + chosen` (ascending), in place. Raises
        ValueError: they are not ascending, or not all cached."""
        places = [-1, *chosen, self.length - start]
        if start < 0 or any(one >= other for one, other in pairwise(places)):
            raise ValueError(f"of {self.length} rows, not all of {start} + {[*chosen]} can be kept")
        self._own(start, start + len(chosen))
        rows = (ctypes.c_int32 * len(chosen))(*chosen)
        self.call("keep", self.structure, start, rows, len(chosen))

    def rewind(self, length: int) -> None:
        """Drop all rows from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"{self.length} rows are cached, not {length}")
        self.structure.length = length
        del self._held[blocks_for(length) :]

    def whole_blocks(self, length: int) -> list[CacheBlock]:
        """The blocks that the first `length` tokens fill, to be shared."""
        return self._held[: min(length, self.length) // BLOCK]


DecodingCache: TypeAlias = PreallocatedCache | NativeCache
Key = tuple[int, tuple[int, ...]]  # number of the entry before, tokens of the block


class SharedPrefixes:
    """What was read, found again by its tokens: a system prompt, a conversation so far. Blocks of
    caches that have ended or are in use, those used longest ago first."""

    def __init__(self, blocks: CacheBlocks) -> None:
        self._blocks = blocks
        self._entries = OrderedDict[Key, tuple[int, CacheBlock]]()
        self._numbers = count(1)  # an entry that comes back has another: none is found by mistake

    def find(self, tokens: Sequence[int]) -> list[CacheBlock]:
        """The blocks of the longest known beginning."""
        parent, keys = 0, list[Key]()
        for part in _parts(tokens):
            if (entry := self._entries.get((parent, part))) is None:
                break
            keys.append((parent, part))
            parent = entry[0]
        return self._used(keys)

    def add(self, tokens: Sequence[int], blocks: Sequence[CacheBlock]) -> None:
        """Remember whole blocks, which hold the first of the tokens."""
        parent, keys = 0, list[Key]()
        for part, block in zip(_parts(tokens), blocks, strict=False):
            key = parent, part
            if key not in self._entries:
                block.shared = True
                self._entries[key] = next(self._numbers), block
            keys.append(key)
            parent = self._entries[key][0]
        self._used(keys)

    def _used(self, keys: Sequence[Key]) -> list[CacheBlock]:
        for key in reversed(keys):  # the end of a text is forgotten before its beginning
            self._entries.move_to_end(key)
        return [self._entries[key][1] for key in keys]

    def forget(self, used: int) -> None:
        """Forget what was not used for longest, until only `used` blocks are in memory."""
        while self._entries and self._blocks.used > used:
            self._entries.popitem(last=False)


def _parts(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The tokens of each whole block."""
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        yield tuple(tokens[start : start + BLOCK])
