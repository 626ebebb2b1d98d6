"""Live models in memory: a dense one for each model asked about, and a state for each browser, of
those used last within one budget of memory. What was dropped is made anew from its address."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.errors import CancelledError, ConfigError, DatasetError, SlimscopeError
from backend.live.address import LiveState, state_at
from backend.live.dense import INSTANT_SEGMENTS, DenseModel
from backend.live.model import LiveModel
from backend.live.running import RunningModel
from backend.models.blocks import resolve_dtype
from backend.models.foreign_tokenizer import TextTokenizer, session_of
from backend.models.memory import check_memory, memory_available, weight_memory
from backend.settings import settings
from backend.text.slices import calibration_slices, evaluation_slice
from jobs.dlqat.kind import DLQATJob
from jobs.fields.models import ResolvedModel, resolve_model
from jobs.fields.text import context_length, corpus_names
from jobs.runtime.loading import load_whole
from jobs.sds.kind import SDSJob
from jobs.serving.answering import Unrecorded
from jobs.serving.live.requests import ROOM, live_memory, require_live
from jobs.serving.pool import (
    BYTES_PER_S,
    LOAD_S,
    SHARE,
    Key,
    Say,
    choose_card,
    key_of,
    open_tokenizer,
    use_card,
)

WINDOW, WINDOWS = 64, 32  # tokens of a window that losses are measured on, and windows
STATES_KEPT, TEXTS_KEPT = 32, 64  # of each model
GUEST_WAITS_S, WAIT_S = 5.0, 0.05  # for a host, before each step


class BrowserState:
    """The live model of one browser; what was asked last is the request at work. `users`: requests
    that have not ended yet; `changing`: held while its formats change."""

    def __init__(self, live: LiveModel) -> None:
        self.live, self.users, self._asked = live, 0, 0
        self.changing = threading.Lock()

    def begin(self, number: int) -> Callable[[], None]:
        """A request, of which later ones have higher numbers: ends those before. To be called where
        it may end: raises `CancelledError` once there is a newer one."""

        def stop() -> None:
            if self._asked > number:
                raise CancelledError

        stop()
        self._asked = max(self._asked, number)
        self.live.cancel()
        return stop


@dataclass
class OpenedModel:
    """A model that is live.

    Attributes:
        windows: token ids [n, L] that losses are measured on; none where `no_text` says why.
        states: by person and browser, the one used last comes last.
        texts: of the dense model, by prompt and number of tokens: pieces, tokens a second.
        others: the saved model that was last compared with this one.
        users: requests at work; preparing: held while energies or ranks are made.
    """

    dense: DenseModel
    tokenizer: TextTokenizer
    device: str
    base: ResolvedModel
    windows: Tensor | None
    no_text: SlimscopeError | None = None
    states: dict[tuple[str, str], BrowserState] = field(default_factory=dict)
    texts: dict[tuple[tuple[int, ...], int], tuple[list[str], float | None]] = field(
        default_factory=dict
    )
    others: dict[Key, RunningModel] = field(default_factory=dict)
    users: int = 0
    preparing: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, address: str) -> LiveState:
        """The state at an address. Raises ConfigError: it cannot be opened."""
        layers = (*self.base.facts.linears, *self.base.facts.embeddings)
        return state_at(address, layers, self.dense.identity)

    def other(self, spec: str, dtype: torch.dtype) -> RunningModel:
        """A saved model of the same shapes, which is kept until there is another one. Raises
        SlimscopeError: there is none of that name, it has other shapes, or does not fit."""
        base = resolve_model(spec, "against")
        shapes = [(x.linears, x.vocabulary, x.hidden) for x in (self.base.facts, base.facts)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"{spec} has no blocks that could stand for those of {self.base.facts.title}.",
                "Their layers differ.",
                "Choose another run.",
                "against",
            )
        key = key_of(spec, base, "auto", str(dtype))
        with self.preparing:
            if key not in self.others:
                self.others = {}
                needed = 2 * weight_memory(base.facts, "bfloat16")
                check_memory(needed, memory_available(), base.facts.title)
                loaded = load_whole(base, self.device, dtype, Unrecorded(), reads=False)
                self.others = {key: RunningModel(loaded.model.requires_grad_(False), dtype)}
            return self.others[key]

    def recall(self) -> None:
        """Take the energies of inputs that an earlier process has measured."""
        if self.dense.calibration is None or not self._energies.exists():
            return
        try:
            self.dense.restore_energies(load_file(self._energies))
        except (OSError, SafetensorError):  # damaged: they are measured again
            self._energies.unlink(missing_ok=True)

    def remember(self) -> None:
        """Keep the energies for processes to come."""
        if not self.dense.energies or (file := self._energies).exists():
            return
        with suppress(OSError):  # a full disk: they are measured again
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(f".{os.getpid()}")
            save_file({name: x.cpu().clone() for name, x in self.dense.energies.items()}, draft)
            draft.replace(file)

    @property
    def _energies(self) -> Path:
        """The file of what the inputs of this model are on this text, which takes some seconds."""
        ids = self.dense.require_text()[:INSTANT_SEGMENTS]
        digest = sha256(ids.numpy().tobytes()).hexdigest()[:16]
        dtype = resolve_dtype(self.dense.sds.precision, self.dense.model.device)
        folder = settings().cache_dir.expanduser() / "live"
        return folder / f"{self.dense.identity}-{digest}-{dtype}.safetensors"

    @property
    def nbytes(self) -> int:
        others = [*self.others.values()]
        saved = sum(p.nbytes for x in others for p in x.model.parameters())
        live = sum(x.live.nbytes for x in [*self.states.values()])
        return self.dense.nbytes + saved + sum(x.nbytes for x in others) + live


class LivePool:
    """The live models of a process, within `budget` bytes (None: half of what is free then)."""

    def __init__(self, threads: Callable[[], int], budget: int | None = None) -> None:
        self._threads, self._budget = threads, budget
        self._opened: dict[Key, OpenedModel] = {}  # the one used last comes last
        self._lock, self._loading, self._hosts = threading.Lock(), threading.Lock(), 0
        self.numbers = count(1)  # of requests, as they come

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in [*self._opened.values()])

    @property
    def budget(self) -> int:
        return self._budget or int(SHARE * (memory_available() + self.nbytes))

    @contextmanager
    def using(self, model: str, say: Say) -> Iterator[OpenedModel]:
        """The model while the body uses it; loaded where it is not there. Raises SlimscopeError:
        there is no such model, or it cannot be live."""
        base = resolve_model(model)
        key = key_of(model, base, "auto", "auto")
        if self._loading.locked():
            say("Loading a model", 0.0)
        with self._loading:
            opened = self._opened.get(key)
            if opened is None:
                self._drop_models(0)
                seconds = LOAD_S + sum(live_memory(base.facts).values()) / BYTES_PER_S
                say(f"Loading {base.facts.title}", seconds)
                opened = self._load(base, model, choose_card("auto"))
            with self._lock:
                self._opened.pop(key, None)
                self._opened[key] = opened
                opened.users += 1
        try:
            use_card(opened.device)
            yield opened
        finally:
            with self._lock:
                opened.users -= 1
            self.trim()

    def _load(self, base: ResolvedModel, model: str, device: str) -> OpenedModel:
        require_live(base.facts)
        dtype: torch.dtype = getattr(torch, base.facts.saved_dtype)
        loaded = load_whole(base, device, dtype, Unrecorded(), reads=False)
        tokenizer = open_tokenizer(base, loaded.folder)
        pruning, rounding = SDSJob(model=model), DLQATJob(model=model)
        windows = calibration = no_text = None
        try:
            with session_of(tokenizer) as working:
                calibration, windows = _texts(pruning, working, base)
        except DatasetError as error:
            no_text = error
        dense = DenseModel(loaded.model, calibration, pruning, rounding, ROOM)
        opened = OpenedModel(dense, tokenizer, device, base, windows, no_text)
        opened.recall()
        return opened

    @contextmanager
    def state(self, opened: OpenedModel, person: str, browser: str) -> Iterator[BrowserState]:
        """The state of a browser while the body uses it, dense at first."""
        key = person, browser
        with self._lock:
            state = opened.states.pop(key, None) or BrowserState(LiveModel(opened.dense))
            opened.states[key] = state
            state.users += 1
        try:
            self.trim()
            yield state
        finally:
            state.users -= 1

    def trim(self) -> None:
        """Give back the memory of the states used longest ago, and then of models, until the rest
        is within budget."""
        budget = self.budget
        with self._lock:
            for opened in [*self._opened.values()]:
                if self.nbytes > budget and not opened.users:
                    opened.others = {}
                for key, state in [*opened.states.items()]:
                    if state.users:
                        continue
                    if self.nbytes > budget:
                        state.live.release()
                    if len(opened.states) > STATES_KEPT:
                        opened.states.pop(key)
        self._drop_models(budget)

    def _drop_models(self, budget: int) -> None:
        """Those used longest ago, but for those in use, and beside a model that is to come the one
        used last."""
        while self.nbytes > budget:
            with self._lock:
                idle = [key for key, x in self._opened.items() if not x.users]
                if len(idle) < 2:
                    return
                self._opened.pop(idle[0])
            gc.collect()

    @contextmanager
    def turn(self, guest: bool) -> Iterator[None]:
        """While a request is at work."""
        with self._lock:
            self._hosts += not guest
        try:
            yield
        finally:
            with self._lock:
                self._hosts -= not guest

    def step(self, guest: bool, say: Say, stop: Callable[[], None]) -> None:
        """Before each step of a request. A guest waits for hosts, some seconds at most, as there
        may always be one; it must hold nothing that others wait for."""
        until = time.monotonic() + GUEST_WAITS_S
        if guest and self._hosts:
            say("The host's model is measured first", GUEST_WAITS_S)
        while guest and self._hosts and time.monotonic() < until:
            stop()
            time.sleep(WAIT_S)
        stop()
        self.share()

    def share(self) -> None:
        """Let this thread compute with as many threads as there are for it now."""
        if (threads := self._threads()) != torch.get_num_threads():
            torch.set_num_threads(threads)


def _texts(config: SDSJob, tokenizer: TextTokenizer, base: ResolvedModel) -> tuple[Tensor, Tensor]:
    """The calibration text of a run with the usual settings, and the beginnings of its evaluation
    windows."""
    calibrated, evaluated = corpus_names(config, base.facts.default_text)
    length = context_length(config, base.facts)
    evaluation = evaluation_slice(evaluated, tokenizer, config.windows, length)
    calibration, _ = calibration_slices(
        calibrated,
        tokenizer,
        config.segments,
        length,
        config.seed,
        config.heldout_windows,
        evaluation,
        shared=calibrated == evaluated,
    )
    parts = evaluation.input_ids.split(min(WINDOW, length), 1)
    windows = torch.cat([part for part in parts if part.shape[1] == parts[0].shape[1]])
    return calibration.input_ids, windows[:WINDOWS]
