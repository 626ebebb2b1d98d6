"""A model in memory, with the engine that answers with it; what was measured with a drafter is kept
for the next text."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.decoding.proposers import Proposer
from backend.decoding.serving.engine import ServingEngine
from backend.decoding.target_model import TargetModel
from backend.drafters.checkpoint import Amphista
from backend.drafters.generate import make_proposer, refuse_processors
from backend.models.loading import LoadedModel
from jobs.serving.cards import use_card

Load = Callable[[str], LoadedModel]  # device -> the model


class WarmModel:
    """A model in memory of about `bytes`, on a `device`; `users`: requests that are answered with
    it; `used`: when the last one ended, by a monotonic clock."""

    def __init__(self, size: int, device: str) -> None:
        self.bytes, self.device = size, device
        self.users, self.used = 1, time.monotonic()
        self.opening = threading.Lock()
        self._opened: tuple[LoadedModel, TargetModel, ServingEngine] | None = None
        self._proposers: dict[tuple[Path, int, int], list[Proposer]] = {}

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @property
    def loaded(self) -> LoadedModel:
        assert self._opened is not None
        return self._opened[0]

    @property
    def engine(self) -> ServingEngine:
        assert self._opened is not None
        return self._opened[2]

    @property
    def decoder(self) -> str:
        """What decodes, in words."""
        assert self._opened is not None
        return self._opened[1].decoder

    def open(self, load: Load, memory: int, threads: Callable[[], int]) -> None:
        """Load it; `memory`: bytes for the keys and values of all texts."""
        use_card(self.device)
        loaded = load(self.device)
        refuse_processors(loaded.model)
        target = TargetModel(loaded.model)
        engine = ServingEngine(target, loaded.tokenizer, memory=memory, threads=threads)
        self._opened = loaded, target, engine

    def close(self) -> None:
        if self._opened is not None:
            self.engine.close()

    def knows(self, drafter: Path, nodes: int) -> bool:
        return (drafter, version_of(drafter), nodes) in self._proposers

    @contextmanager
    def proposer(self, drafter: Path, nodes: int) -> Iterator[Proposer]:
        """A proposer for one text. What was measured for the first is kept for the next."""
        idle = self._proposers.setdefault((drafter, version_of(drafter), nodes), [])
        with self.opening:
            chosen = idle.pop() if idle else self._made(drafter, nodes)
        try:
            yield chosen
        finally:
            idle.append(chosen)

    def _made(self, drafter: Path, nodes: int) -> Proposer:
        use_card(self.device)
        assert self._opened is not None
        return make_proposer(self._opened[1], Amphista.load(drafter), nodes)


def version_of(folder: Path) -> int:
    """A number that changes with the files of a folder; 0 for what is none."""
    if not folder.is_dir():
        return 0
    return max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0)
