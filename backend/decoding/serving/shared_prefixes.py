"""What was read, found again by its tokens: a system prompt, a conversation so far."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count

from backend.decoding.native.cache import CacheBlock, CacheBlocks
from backend.decoding.native.library import BLOCK

Key = tuple[int, tuple[int, ...]]  # number of the entry before, tokens of the block


class SharedPrefixes:
    """Blocks of caches that have ended or are in use, those used longest ago first."""

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
