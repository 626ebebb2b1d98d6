"""Models that stay in memory between answers, each with the engine that answers with it: those used
last, within a budget. A model in use is never dropped: who needs room for another waits."""

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch

from backend.decoding.draft_tree import Proposer
from backend.decoding.native.model import decoding_dtype
from backend.decoding.serving.engine import EngineStatus, ServingEngine
from backend.decoding.target_model import TargetModel
from backend.drafters.checkpoint import WEIGHTS, Amphista
from backend.drafters.generate import make_proposer, refuse_processors
from backend.drafters.registry import Drafter
from backend.errors import CancelledError
from backend.models.foreign_tokenizer import ForeignTokenizer, TextTokenizer
from backend.models.loading import LoadedModel, load_tokenizer
from backend.models.memory import memory_available, weight_memory
from backend.models.sources.catalog import materialize
from backend.models.sources.trust import has_shipped_tokenizer
from backend.printable import readable_bytes
from backend.settings import settings
from jobs.fields.models import ResolvedModel

RESERVE = 10**9  # bytes for caches of keys and values, and for PyTorch itself
Load = Callable[[str], LoadedModel]  # device -> the model
MODELS_KEPT = 2  # beside those in use
TOKENIZERS_KEPT = 16
DRAFTERS_KEPT, PROPOSERS_KEPT = 4, 16  # of a model
SHARE = 0.5  # of the free memory at the start, for models
CACHES = 0.25  # of the budget, for keys and values of each model
DRAFTER_COPIES = 2  # while it is loaded: of the file, and in the dtype of the model
LAYOUTS = 2  # the native decoder keeps the weights in a layout of its own, beside PyTorch's
LOAD_S, BYTES_PER_S = 1.5, 400e6  # of the first model; then what was measured
WAIT_S = 0.3

Say = Callable[[str, float], None]  # what takes time, and about how many seconds (0: unknown)
DrafterKey = tuple[Path, int]  # folder, version of its files
Key = tuple[str, str, str, int]  # spec, device as asked for, precision, version of its files


def choose_card(wanted: str) -> str:
    """The torch device for a config's `device`: of several cards the one with most memory left."""
    if wanted not in ("auto", "cuda") or not torch.cuda.is_available():
        return "cpu" if wanted == "auto" else wanted
    return max([f"cuda:{number}" for number in range(torch.cuda.device_count())], key=free_memory)


def use_card(device: str) -> None:
    """Let this thread work on that device; what waits for "the GPU" waits for it."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


def free_memory(card: str) -> int:
    free, _ = torch.cuda.mem_get_info(card)
    return max(0, free - RESERVE)


class WarmModel:
    """A model in memory on a `device`, which is there once `is_open`; `users`: requests that are
    answered with it; `used`: when the last one ended, by a monotonic clock. `weights`: bytes of it
    alone; `drafters`: of each of its drafters, from before they are loaded; `room`: of all."""

    loaded: LoadedModel
    target: TargetModel
    engine: ServingEngine

    def __init__(self, size: int, device: str) -> None:
        self.weights, self.device = size, device
        self.users, self.used = 1, time.monotonic()
        self.opening = threading.Lock()
        self.is_open = False
        self.drafters: dict[DrafterKey, int] = {}  # the one used last comes last
        self.room, self._counting = sys.maxsize, threading.Lock()
        self._drafters: dict[DrafterKey, tuple[Amphista, Drafter]] = {}
        self._proposers: dict[tuple[Path, int, int], Proposer] = {}

    @property
    def bytes(self) -> int:
        return self.weights + sum([*self.drafters.values()])

    def open(self, load: Load, memory: int, threads: Callable[[], int]) -> None:
        """Load it; `memory`: bytes for the keys and values of all texts."""
        use_card(self.device)
        self.loaded = load(self.device)
        refuse_processors(self.loaded.model)
        self.target = TargetModel(self.loaded.model)
        self.engine = ServingEngine(self.target, None, memory=memory, threads=threads)
        self.is_open = True

    def close(self) -> None:
        if self.is_open:
            self.engine.close()

    def knows(self, drafter: Path, nodes: int) -> bool:
        return (drafter, version_of(drafter), nodes) in self._proposers

    def hold(self, folder: DrafterKey) -> None:
        """Count a drafter that is about to be used; forget those used longest ago where there are
        too many, or all take more than there is `room` for."""
        with self._counting:
            size = self.drafters.pop(folder, None)
            self.drafters[folder] = drafter_size(folder[0]) if size is None else size
            while len(self.drafters) > DRAFTERS_KEPT or (
                len(self.drafters) > 1 and sum(self.drafters.values()) > self.room
            ):
                del self.drafters[next(iter(self.drafters))]

    def proposer(self, drafter: Path, nodes: int) -> Proposer:
        """A proposer for one text. All of a drafter share its weights, and what was measured for
        the first is kept for the next."""
        folder = drafter, version_of(drafter)
        with self.opening:
            self.hold(folder)
            proposers = {k: each for k, each in self._proposers.items() if k[:2] in self.drafters}
            self._drafters = {k: each for k, each in self._drafters.items() if k in self.drafters}
            if (made := proposers.get((*folder, nodes))) is None:
                use_card(self.device)
                if folder not in self._drafters:
                    saved = Amphista.load(drafter)
                    bound = saved.bind(self.target)
                    self._drafters[folder] = replace(saved, weights={}), bound
                saved, bound = self._drafters[folder]
                made = make_proposer(self.target, saved, nodes, bound=bound)
                proposers[(*folder, nodes)] = made
            self._proposers = dict([*proposers.items()][-PROPOSERS_KEPT:])
            return copy(made)


def drafter_size(folder: Path) -> int:
    """Bytes of a drafter in memory, from above; 0 where there is none."""
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    return DRAFTER_COPIES * sum(file.stat().st_size for file in files)


def version_of(folder: Path) -> int:
    """A number that changes with the files of a folder; 0 for what is none."""
    if not folder.is_dir():
        return 0
    return max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0)


def key_of(spec: str, base: ResolvedModel, device: str, precision: str) -> Key:
    return spec, device, precision, version_of(Path(base.source))


class ModelPool:
    """The models of a process, on the CPU within `budget` bytes (None: half of what is free)."""

    def __init__(self, threads: Callable[[], int], budget: int | None = None) -> None:
        free = int(SHARE * memory_available())
        self.budget = budget or min(int(settings().job_gb * 1e9) or free, free)
        self._models: dict[Key, WarmModel] = {}  # the one used last comes last
        self._changed = threading.Condition()
        self._pace = BYTES_PER_S
        self._tokenizers: dict[Key, TextTokenizer] = {}
        self._threads = threads

    def __len__(self) -> int:
        return len(self._models)

    def threads(self) -> int:
        """Of each engine: half while a model is loaded, for which somebody waits."""
        loading = not all(model.is_open for model in [*self._models.values()])
        return max(1, self._threads() // (2 if loading else 1))

    def status(self) -> dict[str, EngineStatus]:
        """What the engine of each model does."""
        with self._changed:
            there = [(key[0], model) for key, model in self._models.items() if model.is_open]
        return {name: model.engine.status() for name, model in there}

    @property
    def pass_s(self) -> float:
        """Seconds of the longest pass at work."""
        models = [*self._models.values()]
        return max((model.engine.pass_s for model in models if model.is_open), default=0.0)

    def tokenizer(self, base: ResolvedModel, key: Key, say: Say) -> TextTokenizer:
        """The tokenizer of a model, which need not be loaded; fetches the model if it is not here.
        Raises ModelError: it cannot be had."""
        if (kept := self._tokenizers.get(key)) is None:
            folder = materialize(base.source, lambda text: say(text.capitalize(), 0.0))
            while len(self._tokenizers) >= TOKENIZERS_KEPT:
                dropped = self._tokenizers.pop(next(iter(self._tokenizers)), None)
                if isinstance(dropped, ForeignTokenizer):
                    dropped.close()
            self._tokenizers[key] = kept = open_tokenizer(base, folder)
        return kept

    @contextmanager
    def using(
        self,
        base: ResolvedModel,
        key: Key,
        load: Load,
        say: Say,
        stopped: Callable[[], bool],
        drafter: Path | None = None,
    ) -> Iterator[WarmModel]:
        """The model while the body uses it, loaded with `load` unless it is here already, and with
        room for the `drafter`. Raises CancelledError: it was `stopped` while there was no room;
        SlimscopeError: it cannot be loaded."""
        held = (drafter, version_of(drafter)) if drafter else None
        model = self._enter(key, base, held, say, stopped)
        try:
            if not model.is_open:
                say(f"Loading {base.facts.title}", LOAD_S + model.weights / self._pace)
            with model.opening:
                if not model.is_open:
                    began = time.monotonic()
                    model.open(load, int(CACHES * self.budget), self.threads)
                    self._pace = model.weights / max(0.1, time.monotonic() - began - LOAD_S)
            yield model
        finally:
            with self._changed:
                model.users, model.used = model.users - 1, time.monotonic()
                if not model.is_open and not model.users:
                    self._models.pop(key, None)
                self._drop_idle(MODELS_KEPT)
                self._changed.notify_all()

    def _enter(
        self,
        key: Key,
        base: ResolvedModel,
        drafter: DrafterKey | None,
        say: Say,
        stopped: Callable[[], bool],
    ) -> WarmModel:
        """Take the model, once there is room for what has to be loaded; both at once, or two that
        have each a model would wait for each other."""
        with self._changed:
            while True:
                model = self._models.get(key)
                if model:
                    card, size = model.device, 0
                else:
                    card = choose_card(key[1]) if not base.packed else "cpu"
                    size = size_of(base, card, key[2])
                    self._drop_idle(MODELS_KEPT - 1)
                drafted = drafter_size(drafter[0]) if drafter else 0
                if model and drafter in model.drafters:
                    drafted = 0
                if short := self._shortage(size + drafted, card, key):
                    self._drop_idle(0, key)
                    short = self._shortage(size + drafted, card, key)
                if not short:
                    break
                say(short, 0.0)
                self._changed.wait(WAIT_S)
                if stopped():
                    raise CancelledError
            if model:
                self._models.pop(key)
                model.users += 1
            else:
                model = WarmModel(size, card)
            self._models[key] = model
            if drafter:
                model.room = self.budget - self._others(key) - model.weights
                model.hold(drafter)
            return model

    def _others(self, key: Key) -> int:
        """Bytes that other models hold on the CPU."""
        held = (x.bytes for each, x in self._models.items() if x.device == "cpu" and each != key)
        return sum(held)

    def _shortage(self, size: int, device: str, key: Key) -> str:
        """Why there is no room for `size` more bytes, of the model `key`, in words; "" if there
        is."""
        if not size:
            return ""
        if device != "cpu":
            free = free_memory(device)
            return (
                "" if size < free else _waiting(size, f"{device} has {readable_bytes(free)} free")
            )
        others, own = self._others(key), self._models.get(key)
        if not others or others + (own.weights if own else 0) + size <= self.budget:
            return ""  # one that is too large on its own is tried
        return _waiting(size, f"models in use hold {readable_bytes(others)}")

    def _drop_idle(self, most: int, but: Key | None = None) -> None:
        """Forget those used longest ago until `most` are left, but for those in use, and one."""
        idle = [key for key, model in self._models.items() if not model.users and key != but]
        dropped = idle[: max(0, len(self._models) - most)]
        for key in dropped:
            self._models.pop(key).close()
        if dropped:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def open_tokenizer(base: ResolvedModel, folder: Path) -> TextTokenizer:
    """The tokenizer in the folder of a model; that of a foreign model works in a limited child.
    Raises ModelError: it cannot be read."""
    if has_shipped_tokenizer(str(folder)):
        return load_tokenizer(folder, base.facts)
    return ForeignTokenizer(folder, base.facts)


def _waiting(size: int, why: str) -> str:
    return f"Waiting for {readable_bytes(size)} of memory: {why}"


def size_of(base: ResolvedModel, device: str, precision: str) -> int:
    """Bytes of a model's weights in memory, from above."""
    where, architecture = torch.device(device), base.facts.architecture
    dtype = "bfloat16" if base.packed else decoding_dtype(precision, where, architecture)
    copies = LAYOUTS if device == "cpu" and dtype == "bfloat16" else 1
    return copies * weight_memory(base.facts, dtype)
