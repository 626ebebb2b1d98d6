"""Tables that can be made again, within a budget of memory; those used last stay."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor


class KeptTables:
    """Tensors by key, of about `room` bytes together; the one asked for last is always kept."""

    def __init__(self, room: int) -> None:
        self.room, self.nbytes = room, 0
        self._kept: dict[Hashable, Tensor] = {}  # the one used last comes last

    def find(self, key: Hashable) -> Tensor | None:
        """The table of that key; None where it is not kept, or no longer."""
        if key not in self._kept:
            return None
        table = self._kept[key] = self._kept.pop(key)
        return table

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The table of that key, made where it is not kept."""
        table = self.find(key)
        return self.put(key, make()) if table is None else table

    def put(self, key: Hashable, table: Tensor) -> Tensor:
        """Keep a table, in place of those not used for longest."""
        if key in self._kept:
            self.nbytes -= self._kept.pop(key).nbytes
        self._kept[key] = table
        self.nbytes += table.nbytes
        while self.nbytes > self.room and len(self._kept) > 1:
            self.nbytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return table

    def clear(self) -> None:
        self._kept.clear()
        self.nbytes = 0
