"""Key-value cache in blocks of `BLOCK` tokens. Sequences with the same prefix share blocks."""

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
    """Return the number of blocks that hold `tokens` tokens."""
    return -(-tokens // BLOCK)


class CacheBlock:
    """Keys and values [2, layers, kv heads, BLOCK, head] in bfloat16.

    A block that is marked `shared` is immutable; a cache that needs to write it makes a copy.
    """

    __slots__ = ("__weakref__", "rows", "shared")

    def __init__(self, size: int) -> None:
        self.rows, self.shared = torch.empty(size, dtype=torch.bfloat16), False


class CacheBlocks:
    """Allocator of the blocks of several caches of a model.

    A block is freed when no cache refers to it.

    Args:
        row: number of values per token.

    Attributes:
        size: bytes per block.
    """

    def __init__(self, row: int) -> None:
        self._values, self.size = row * BLOCK, 2 * row * BLOCK
        self._live = WeakSet[CacheBlock]()

    @property
    def used(self) -> int:
        """Number of blocks in memory."""
        return len(self._live)

    def new(self, like: CacheBlock | None = None) -> CacheBlock:
        """Allocate a block; `like` is a block to copy."""
        block = CacheBlock(self._values)
        if like is not None:
            block.rows.copy_(like.rows)
        self._live.add(block)
        return block


class NativeCache:
    """Keys and values of one sequence.

    Args:
        call: calls a kernel on the model.
        blocks: allocator of blocks.
        capacity: maximum number of tokens.
        prefix: blocks of another cache that hold the first tokens; shared with it.
        length: number of tokens in `prefix`.
    """

    def __init__(
        self,
        call: Callable[..., None],
        blocks: CacheBlocks,
        capacity: int,
        prefix: Sequence[CacheBlock] = (),
        length: int = 0,
    ) -> None:
        self.call, self.capacity, self._allocator = call, capacity, blocks
        self._blocks: list[CacheBlock] = []
        self._addresses = (ctypes.c_void_p * blocks_for(capacity))()
        self.structure = c.Cache(capacity, 0, ctypes.addressof(self._addresses))
        for index, block in enumerate(prefix):
            block.shared = True
            self._set_block(index, block)
        self.structure.length = length

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return int(self.structure.length)

    def missing(self, tokens: int) -> int:
        """Return the number of blocks to allocate before `tokens` tokens can be appended."""
        first, end = self.length // BLOCK, blocks_for(self.length + tokens)
        return end - first - sum(not block.shared for block in self._blocks[first:end])

    def make_room(self, tokens: int) -> None:
        """Allocate writable blocks for `tokens` more tokens. Raises `ValueError` if they do not
        fit."""
        if self.length + tokens > self.capacity:
            raise ValueError(f"{tokens} more tokens do not fit into the cache")
        self._make_writable(self.length, self.length + tokens)

    def _make_writable(self, start: int, end: int) -> None:
        """Allocate missing blocks of the rows [start, end), and copy shared ones."""
        for index in range(start // BLOCK, blocks_for(end)):
            if index == len(self._blocks):
                self._set_block(index, self._allocator.new())
            elif self._blocks[index].shared:
                self._set_block(index, self._allocator.new(self._blocks[index]))

    def _set_block(self, index: int, block: CacheBlock) -> None:
        self._blocks[index : index + 1] = [block]
        self._addresses[index] = block.rows.data_ptr()

    def keep(self, start: int, chosen: Sequence[int]) -> None:
        """Keep only the rows `start + chosen` of the rows from `start` on, and compact them.

        Args:
            start: number of first rows that are kept in any case.
            chosen: offsets from `start`, ascending.

        Raises:
            ValueError: the offsets are not ascending, or a row is not cached.
        """
        limits = [-1, *chosen, self.length - start]
        if start < 0 or any(offset >= following for offset, following in pairwise(limits)):
            raise ValueError(f"rows {start} + {[*chosen]} cannot be kept of {self.length} rows")
        self._make_writable(start, start + len(chosen))
        rows = (ctypes.c_int32 * len(chosen))(*chosen)
        self.call("keep", self.structure, start, rows, len(chosen))

    def rewind(self, length: int) -> None:
        """Drop all rows from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"{self.length} cached rows cannot be cut to {length}")
        self.structure.length = length
        del self._blocks[blocks_for(length) :]

    def whole_blocks(self, length: int) -> list[CacheBlock]:
        """Return the blocks that the first `length` tokens fill completely, for sharing."""
        return self._blocks[: min(length, self.length) // BLOCK]


DecodingCache: TypeAlias = PreallocatedCache | NativeCache
Key = tuple[int, tuple[int, ...]]  # number of the preceding entry, tokens of the block


class SharedPrefixes:
    """Prefix cache: blocks of earlier or running sequences by their tokens, such as a system prompt
    or a conversation. Entries are in order of their last use, least recent first."""

    def __init__(self, blocks: CacheBlocks) -> None:
        self._blocks = blocks
        self._entries = OrderedDict[Key, tuple[int, CacheBlock]]()
        self._numbers = count(1)  # never reused, so that a key cannot refer to an evicted entry

    def find(self, tokens: Sequence[int]) -> list[CacheBlock]:
        """Return the blocks of the longest cached prefix of `tokens`."""
        parent, keys = 0, list[Key]()
        for part in _parts(tokens):
            if (entry := self._entries.get((parent, part))) is None:
                break
            keys.append((parent, part))
            parent = entry[0]
        return self._used(keys)

    def add(self, tokens: Sequence[int], blocks: Sequence[CacheBlock]) -> None:
        """Add full blocks, which hold the first of `tokens`."""
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
        for key in reversed(keys):  # the end of a text is evicted before its beginning
            self._entries.move_to_end(key)
        return [self._entries[key][1] for key in keys]

    def forget(self, used: int) -> None:
        """Evict the least recently used entries until at most `used` blocks are in memory."""
        while self._entries and self._blocks.used > used:
            self._entries.popitem(last=False)


def _parts(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Split tokens into full blocks; the rest is dropped."""
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        yield tuple(tokens[start : start + BLOCK])
