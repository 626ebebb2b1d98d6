"""A model in memory: what was measured with it, and what it has read, are kept for the next text.
Texts written at the same time share its weights; each has a cache of keys and values of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from backend.decoding.cost_model import measure_costs
from backend.decoding.native.cache import NativeCache
from backend.decoding.proposers import NoDraft, Proposer
from backend.decoding.target_model import TargetModel
from backend.drafters.checkpoint import Amphista
from backend.drafters.generate import make_proposer
from backend.models.loading import LoadedModel
from jobs.playground.cards import use_card
from jobs.playground.share import HostPriority

KEPT_TEXTS = 4  # whose caches are kept

Load = Callable[[str], LoadedModel]  # device -> the model


class WarmModel:
    """A model in memory of about `bytes`, on a `device`; `users`: texts that are being written with
    it; `used`: when the last one ended, by a monotonic clock."""

    def __init__(self, size: int, device: str, priority: HostPriority) -> None:
        self.bytes, self.device = size, device
        self._priority = priority  # of all that is done while others wait at `opening`
        self.users, self.used = 1, time.monotonic()
        self.opening = threading.Lock()
        self._opened: tuple[LoadedModel, TargetModel] | None = None
        self._proposers: dict[tuple[Path, int, int], list[Proposer]] = {}
        self._lookup_length = 0
        self._kept: list[tuple[Sequence[int], NativeCache]] = []  # token ids, and what was read

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @property
    def loaded(self) -> LoadedModel:
        assert self._opened is not None
        return self._opened[0]

    @property
    def target(self) -> TargetModel:
        assert self._opened is not None
        return self._opened[1]

    def open(self, load: Load) -> None:
        def opened() -> tuple[LoadedModel, TargetModel]:
            loaded = load(self.device)
            return loaded, TargetModel(loaded.model)

        self._opened = self._priority.call(opened)

    def knows(self, drafter: Path, nodes: int) -> bool:
        return (drafter, version_of(drafter), nodes) in self._proposers

    @contextmanager
    def proposer(self, drafter: Path | None, nodes: int) -> Iterator[Proposer]:
        """A proposer for one text. What was measured for the first is kept for the next."""
        if drafter is None:
            yield NoDraft()
            return
        idle = self._proposers.setdefault((drafter, version_of(drafter), nodes), [])
        with self.opening:
            chosen = idle.pop() if idle else self._priority.call(lambda: self._made(drafter, nodes))
        try:
            yield chosen
        finally:
            idle.append(chosen)

    def _made(self, drafter: Path, nodes: int) -> Proposer:
        use_card(self.device)
        return make_proposer(self.target, Amphista.load(drafter), nodes)

    def recall(self, ids: Sequence[int], capacity: int) -> NativeCache | None:
        """A cache for `capacity` tokens that holds as much of the beginning of `ids` as an earlier
        text has in common with it; None where the model has no such caches."""
        if self.target.native is None:
            return None
        with self.opening:
            kept, length = None, 0
            for known, cache in self._kept:
                most = min(cache.length, len(known), len(ids) - 1)
                common = next((n for n in range(most) if known[n] != ids[n]), most)
                if common > length:
                    kept, length = cache, common
            return kept.beginning(length, capacity) if kept else None

    def remember(self, ids: Sequence[int], cache: NativeCache) -> None:
        """Keep the cache of a text for the one that goes on with it."""
        with self.opening:
            self._kept = [*self._kept, (ids, cache)][-KEPT_TEXTS:]

    def lookup_length(self) -> int:
        with self.opening:
            self._lookup_length = self._lookup_length or self._priority.call(self._measured_length)
        return self._lookup_length

    def _measured_length(self) -> int:
        use_card(self.device)
        return measure_costs(self.target).lookup_length


def version_of(folder: Path) -> int:
    """A number that changes with the files of a folder; 0 for what is none."""
    if not folder.is_dir():
        return 0
    return max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0)
