"""Models that stay in memory between answers, each with its serving engine: the most recently used
ones, within a memory budget. A model in use is never dropped; a request for another model waits
until there is room."""

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
from backend.models.devices import accelerator_module, accelerators, free_memory, use_device
from backend.models.foreign_tokenizer import ForeignTokenizer, TextTokenizer
from backend.models.loading import LoadedModel, load_tokenizer
from backend.models.memory import memory_available, weight_memory
from backend.models.sources.catalog import materialize
from backend.models.sources.trust import has_shipped_tokenizer
from backend.printable import readable_bytes
from backend.settings import settings
from jobs.fields.models import ResolvedModel

RESERVE = 10**9  # bytes of a GPU for KV caches and PyTorch
Load = Callable[[str], LoadedModel]  # device -> model
MAX_MODELS = 2  # models beyond this number are dropped when idle
MAX_TOKENIZERS = 16
MAX_DRAFTERS, MAX_PROPOSERS = 4, 16  # per model
MODEL_SHARE = 0.5  # share of the memory that is free at startup
CACHE_SHARE = 0.25  # share of the budget for the KV caches of each model
DRAFTER_COPIES = 2  # while loading: as in the file, and in the model's dtype
WEIGHT_COPIES = 2  # PyTorch's weights, and the native decoder's packed copy
LOAD_S, LOAD_BYTES_PER_S = 1.5, 400e6  # for the first estimate; later ones use measured rates
RETRY_S = 0.3  # pause between checks for free memory

ReportWait = Callable[[str, float], None]  # step, expected seconds (0: unknown)
DrafterKey = tuple[Path, int]  # folder, version of its files
ModelKey = tuple[str, str, str, int]  # spec, requested device, precision, version of its files


def choose_device(requested: str) -> str:
    """Return the torch device for a config's `device`; with several GPUs, the one with the most
    free memory."""
    if requested not in ("auto", "cuda"):
        return requested
    return max(accelerators(), key=free_memory, default="cpu" if requested == "auto" else requested)


class WarmModel:
    """Model in memory, with its engine.

    Attributes:
        weights: bytes of its weights.
        users: requests that it answers now.
        used: end of the last request, in seconds of a monotonic clock.
        opening: held while the model or a drafter is loaded.
        is_open: True once the model is loaded.
        drafters: bytes of each drafter, from before it is loaded; the most recently used is last.
        drafter_budget: bytes that all its drafters may take.
    """

    loaded: LoadedModel
    target: TargetModel
    engine: ServingEngine

    def __init__(self, size: int, device: str) -> None:
        self.weights, self.device = size, device
        self.users, self.used = 1, time.monotonic()
        self.opening = threading.Lock()
        self.is_open = False
        self.drafters: dict[DrafterKey, int] = {}
        self.drafter_budget, self._reserving = sys.maxsize, threading.Lock()
        self._drafters: dict[DrafterKey, tuple[Amphista, Drafter]] = {}
        self._proposers: dict[tuple[Path, int, int], Proposer] = {}

    @property
    def bytes(self) -> int:
        """Bytes of the model and its drafters."""
        return self.weights + sum([*self.drafters.values()])

    def open(self, load: Load, memory: int, threads: Callable[[], int]) -> None:
        """Load the model. `memory`: bytes for the KV caches of all answers."""
        use_device(self.device)
        self.loaded = load(self.device)
        refuse_processors(self.loaded.model)
        self.target = TargetModel(self.loaded.model)
        self.engine = ServingEngine(self.target, None, memory=memory, threads=threads)
        self.is_open = True

    def close(self) -> None:
        """Stop the engine, if the model was loaded."""
        if self.is_open:
            self.engine.close()

    def has_proposer(self, drafter: Path, nodes: int) -> bool:
        """Return True if the drafter has been measured for trees of `nodes` nodes."""
        return (drafter, folder_version(drafter), nodes) in self._proposers

    def reserve_drafter(self, key: DrafterKey) -> None:
        """Reserve memory for a drafter that is about to be used. Drops the least recently used
        drafters if there are too many or they exceed `drafter_budget`."""
        with self._reserving:
            size = self.drafters.pop(key, None)
            self.drafters[key] = drafter_bytes(key[0]) if size is None else size
            while len(self.drafters) > MAX_DRAFTERS or (
                len(self.drafters) > 1 and sum(self.drafters.values()) > self.drafter_budget
            ):
                del self.drafters[next(iter(self.drafters))]

    def proposer(self, drafter: Path, nodes: int) -> Proposer:
        """Return a proposer for one answer. Proposers of a drafter share its weights and measured
        costs."""
        key = drafter, folder_version(drafter)
        with self.opening:
            self.reserve_drafter(key)
            proposers = {k: p for k, p in self._proposers.items() if k[:2] in self.drafters}
            self._drafters = {k: d for k, d in self._drafters.items() if k in self.drafters}
            if (proposer := proposers.get((*key, nodes))) is None:
                use_device(self.device)
                if key not in self._drafters:
                    saved = Amphista.load(drafter)
                    bound = saved.bind(self.target)
                    self._drafters[key] = replace(saved, weights={}), bound
                saved, bound = self._drafters[key]
                proposer = make_proposer(self.target, saved, nodes, bound=bound)
                proposers[(*key, nodes)] = proposer
            self._proposers = dict([*proposers.items()][-MAX_PROPOSERS:])
            return copy(proposer)


def drafter_bytes(folder: Path) -> int:
    """Upper bound of a drafter's bytes in memory; 0 if there is no drafter."""
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    return DRAFTER_COPIES * sum(file.stat().st_size for file in files)


def folder_version(folder: Path) -> int:
    """Return a number that changes with the files of a folder; 0 if it is no folder."""
    if not folder.is_dir():
        return 0
    return max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0)


def model_key(spec: str, base: ResolvedModel, device: str, precision: str) -> ModelKey:
    """Return the key of a model in a pool."""
    return spec, device, precision, folder_version(Path(base.source))


class ModelPool:
    """Models of a process. `budget`: bytes on the CPU; None: half of the free memory."""

    def __init__(self, threads: Callable[[], int], budget: int | None = None) -> None:
        free = int(MODEL_SHARE * memory_available())
        self.budget = budget or min(int(settings().job_gb * 1e9) or free, free)
        self._models: dict[ModelKey, WarmModel] = {}  # the most recently used is last
        self._changed = threading.Condition()
        self._load_bytes_per_s = LOAD_BYTES_PER_S
        self._tokenizers: dict[ModelKey, TextTokenizer] = {}
        self._threads = threads

    def __len__(self) -> int:
        return len(self._models)

    def threads(self) -> int:
        """Number of threads for each engine: half of all while a model is loaded."""
        loading = not all(model.is_open for model in [*self._models.values()])
        return max(1, self._threads() // (2 if loading else 1))

    def status(self) -> dict[str, EngineStatus]:
        """Status of the engine of each loaded model."""
        with self._changed:
            loaded = [(key[0], model) for key, model in self._models.items() if model.is_open]
        return {name: model.engine.status() for name, model in loaded}

    @property
    def pass_s(self) -> float:
        """Seconds that the longest forward pass in progress has taken."""
        models = [*self._models.values()]
        return max((model.engine.pass_s for model in models if model.is_open), default=0.0)

    def tokenizer(
        self, base: ResolvedModel, key: ModelKey, report_wait: ReportWait
    ) -> TextTokenizer:
        """Return the tokenizer of a model that need not be loaded; download the model if it is
        missing. Raises ModelError: the tokenizer cannot be loaded."""
        if (tokenizer := self._tokenizers.get(key)) is None:
            folder = materialize(base.source, lambda text: report_wait(text.capitalize(), 0.0))
            while len(self._tokenizers) >= MAX_TOKENIZERS:
                dropped = self._tokenizers.pop(next(iter(self._tokenizers)), None)
                if isinstance(dropped, ForeignTokenizer):
                    dropped.close()
            self._tokenizers[key] = tokenizer = open_tokenizer(base, folder)
        return tokenizer

    @contextmanager
    def using(
        self,
        base: ResolvedModel,
        key: ModelKey,
        load: Load,
        report_wait: ReportWait,
        stopped: Callable[[], bool],
        drafter: Path | None = None,
    ) -> Iterator[WarmModel]:
        """Hold a model for the duration of the block; load it first if it is not in memory.

        Args:
            load: loads the model on a device.
            report_wait: called with each step that takes time.
            stopped: returns True if the request was cancelled.
            drafter: folder of a drafter that needs memory, too.

        Raises:
            CancelledError: the request was cancelled while it waited for memory.
            SlimscopeError: the model cannot be loaded.
        """
        drafter_key = (drafter, folder_version(drafter)) if drafter else None
        model = self._enter(key, base, drafter_key, report_wait, stopped)
        try:
            if not model.is_open:
                report_wait(
                    f"Loading {base.facts.title}", LOAD_S + model.weights / self._load_bytes_per_s
                )
            with model.opening:
                if not model.is_open:
                    started = time.monotonic()
                    on_cpu = model.device == "cpu"
                    free = self.budget if on_cpu else free_memory(model.device) - model.weights
                    model.open(load, int(CACHE_SHARE * max(0, free)), self.threads)
                    read_s = max(0.1, time.monotonic() - started - LOAD_S)
                    self._load_bytes_per_s = model.weights / read_s
            yield model
        finally:
            with self._changed:
                model.users, model.used = model.users - 1, time.monotonic()
                if not model.is_open and not model.users:
                    self._models.pop(key, None)
                self._drop_idle(MAX_MODELS)
                self._changed.notify_all()

    def _enter(
        self,
        key: ModelKey,
        base: ResolvedModel,
        drafter: DrafterKey | None,
        report_wait: ReportWait,
        stopped: Callable[[], bool],
    ) -> WarmModel:
        """Reserve memory for model and drafter once there is room, and count the user. Both at
        once: two requests with a model each would otherwise wait for each other's memory."""
        with self._changed:
            while True:
                model = self._models.get(key)
                if model:
                    device, size = model.device, 0
                else:
                    device = choose_device(key[1]) if not base.packed else "cpu"
                    size = weight_bytes(base, device, key[2])
                    self._drop_idle(MAX_MODELS - 1)
                needed = size
                if drafter and not (model and drafter in model.drafters):
                    needed += drafter_bytes(drafter[0])
                if shortage := self._shortage(needed, device, key):
                    self._drop_idle(0, key)
                    shortage = self._shortage(needed, device, key)
                if not shortage:
                    break
                report_wait(shortage, 0.0)
                self._changed.wait(RETRY_S)
                if stopped():
                    raise CancelledError
            if model:
                self._models.pop(key)
                model.users += 1
            else:
                model = WarmModel(size, device)
            self._models[key] = model
            if drafter:
                model.drafter_budget = self.budget - self._other_models_bytes(key) - model.weights
                model.reserve_drafter(drafter)
            return model

    def _other_models_bytes(self, key: ModelKey) -> int:
        """Bytes that other models hold on the CPU."""
        models = self._models.items()
        return sum(model.bytes for k, model in models if model.device == "cpu" and k != key)

    def _shortage(self, size: int, device: str, key: ModelKey) -> str:
        """Return the reason why `size` more bytes for the model `key` do not fit; "" if they do."""
        if not size:
            return ""
        if device != "cpu":
            free = max(0, free_memory(device) - RESERVE)
            if size < free:
                return ""
            return _wait_message(size, f"{device} has {readable_bytes(free)} free")
        other_bytes, model = self._other_models_bytes(key), self._models.get(key)
        if not other_bytes or other_bytes + (model.weights if model else 0) + size <= self.budget:
            return ""  # a model beyond the budget is still tried, alone
        return _wait_message(size, f"models in use hold {readable_bytes(other_bytes)}")

    def _drop_idle(self, limit: int, keep: ModelKey | None = None) -> None:
        """Drop the least recently used idle models until `limit` models are left; never drop the
        model `keep`."""
        idle = [key for key, model in self._models.items() if not model.users and key != keep]
        dropped = idle[: max(0, len(self._models) - limit)]
        for key in dropped:
            self._models.pop(key).close()
        if dropped:
            gc.collect()
            if module := accelerator_module():
                module.empty_cache()


def open_tokenizer(base: ResolvedModel, folder: Path) -> TextTokenizer:
    """Load the tokenizer from the folder of a model; that of a foreign model runs in a limited
    child process. Raises ModelError: it cannot be loaded."""
    if has_shipped_tokenizer(str(folder)):
        return load_tokenizer(folder, base.facts)
    return ForeignTokenizer(folder, base.facts)


def _wait_message(size: int, reason: str) -> str:
    return f"Waiting for {readable_bytes(size)} of memory: {reason}"


def weight_bytes(base: ResolvedModel, device: str, precision: str) -> int:
    """Upper bound of the bytes of a model's weights in memory."""
    torch_device, architecture = torch.device(device), base.facts.architecture
    dtype = "bfloat16" if base.packed else decoding_dtype(precision, torch_device, architecture)
    copies = WEIGHT_COPIES if device == "cpu" and dtype == "bfloat16" else 1
    return copies * weight_memory(base.facts, dtype)
