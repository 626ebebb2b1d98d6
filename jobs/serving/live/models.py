"""Live models in memory: one dense model for each model in use, and one state per browser. The most
recently used ones stay within one memory budget; a dropped state is rebuilt from its address."""

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

from backend.errors import CancelledError, ConfigError, DatasetError, ModelError, SlimscopeError
from backend.live.address import LiveState, state_at
from backend.live.dense import INSTANT_SEGMENTS, DenseModel
from backend.live.model import LiveModel
from backend.live.running import RunningModel
from backend.models.blocks import resolve_dtype
from backend.models.devices import device_memory, use_device
from backend.models.foreign_tokenizer import TextTokenizer, tokenizer_session
from backend.models.memory import weight_memory
from backend.settings import settings
from backend.text.slices import calibration_slices, evaluation_slice
from jobs.dlqat.kind import DLQATJob
from jobs.fields.models import ResolvedModel, resolve_model
from jobs.fields.text import context_length, corpus_names
from jobs.runtime.loading import load_whole
from jobs.sds.kind import SDSJob
from jobs.serving.answering import UnrecordedContext
from jobs.serving.live.requests import MAX_TABLE_BYTES, live_memory, require_live
from jobs.serving.pool import (
    LOAD_BYTES_PER_S,
    LOAD_S,
    MODEL_SHARE,
    ModelKey,
    ReportWait,
    choose_device,
    model_key,
    open_tokenizer,
)

WINDOWS = 5  # evaluation windows for measuring losses: the fewest with an interval
MAX_STATES, MAX_TEXTS = 32, 64  # per model
GUEST_WAITS_S = 5.0  # longest wait of a guest for hosts, before each step
RETRY_S = 0.05  # pause between checks for active hosts


class BrowserState:
    """Live model of one browser, and its newest request.

    Attributes:
        users: requests in progress.
        changing: held while the formats of its layers change.
    """

    def __init__(self, live: LiveModel) -> None:
        self.live, self.users, self._newest = live, 0, 0
        self.changing = threading.Lock()

    def begin(self, number: int) -> Callable[[], None]:
        """Begin request `number`, which ends requests with lower numbers. Return a check that
        raises CancelledError once there is a newer request. Raises CancelledError: there is one
        already."""

        def check() -> None:
            if self._newest > number:
                raise CancelledError

        check()
        self._newest = max(self._newest, number)
        self.live.cancel()
        return check


@dataclass
class OpenedModel:
    """Model that is live.

    Attributes:
        windows: token ids [n, L] for measuring losses; None if there is no text (see `text_error`).
        text_error: reason why there is no calibration or evaluation text.
        states: states by person and browser; the most recently used is last.
        texts: texts of the dense model by prompt and number of tokens: pieces, tokens per second.
        comparisons: the saved model that was last compared with this one.
        users: requests in progress.
        preparing: held while energies, ranks or a comparison model are computed or loaded.
    """

    dense: DenseModel
    tokenizer: TextTokenizer
    device: str
    base: ResolvedModel
    windows: Tensor | None
    text_error: SlimscopeError | None = None
    states: dict[tuple[str, str], BrowserState] = field(default_factory=dict)
    texts: dict[tuple[tuple[int, ...], int], tuple[list[str], float | None]] = field(
        default_factory=dict
    )
    comparisons: dict[ModelKey, RunningModel] = field(default_factory=dict)
    users: int = 0
    preparing: threading.Lock = field(default_factory=threading.Lock)

    def parse_state(self, address: str) -> LiveState:
        """Parse the address of a state. Raises ConfigError: it is invalid for this model."""
        layers = (*self.base.facts.linears, *self.base.facts.embeddings)
        return state_at(address, layers, self.dense.identity)

    def comparison_model(self, spec: str, dtype: torch.dtype) -> RunningModel:
        """Load a saved model of the same shapes; the last one is kept. Raises SlimscopeError: no
        model of that name, other shapes, or too little memory."""
        base = resolve_model(spec, "against")
        shapes, other_shapes = (
            (facts.linears, facts.vocabulary, facts.hidden)
            for facts in (self.base.facts, base.facts)
        )
        if shapes != other_shapes:
            raise ConfigError(
                f"{spec} cannot be compared with {self.base.facts.title}.",
                "Their layers have different shapes.",
                "Choose another run.",
                "against",
            )
        key = model_key(spec, base, "auto", str(dtype))
        with self.preparing:
            if key not in self.comparisons:
                self.comparisons = {}
                needed = {"weights": 2 * weight_memory(base.facts, "bfloat16")}
                device_memory(self.device).require(needed, base.facts.title)
                loaded = load_whole(base, self.device, dtype, UnrecordedContext(), reads=False)
                self.comparisons = {key: RunningModel(loaded.model.requires_grad_(False), dtype)}
            return self.comparisons[key]

    def restore_energies(self) -> None:
        """Load the input energies that an earlier process has measured, if any."""
        if self.dense.calibration is None or not self._energies_file.exists():
            return
        try:
            self.dense.restore_energies(load_file(self._energies_file))
        except (OSError, SafetensorError):  # damaged: energies are measured again
            self._energies_file.unlink(missing_ok=True)

    def save_energies(self) -> None:
        """Save the input energies for later processes."""
        if not self.dense.energies or (file := self._energies_file).exists():
            return
        with suppress(OSError):  # a full disk: energies are measured again
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(f".{os.getpid()}")
            energies = self.dense.energies.items()
            save_file({name: energy.cpu().clone() for name, energy in energies}, draft)
            draft.replace(file)

    @property
    def _energies_file(self) -> Path:
        """File of the input energies of this model on its calibration text; measuring takes
        seconds."""
        ids = self.dense.require_text()[:INSTANT_SEGMENTS]
        digest = sha256(ids.numpy().tobytes()).hexdigest()[:16]
        dtype = resolve_dtype(self.dense.sds.precision, self.dense.model.device)
        folder = settings().cache_dir.expanduser() / "live"
        return folder / f"{self.dense.identity}-{digest}-{dtype}.safetensors"

    @property
    def nbytes(self) -> int:
        """Bytes of the dense model, its states and the comparison model."""
        comparisons = [*self.comparisons.values()]
        parameters = sum(p.nbytes for model in comparisons for p in model.model.parameters())
        packed = sum(model.nbytes for model in comparisons)
        live = sum(state.live.nbytes for state in [*self.states.values()])
        return self.dense.nbytes + parameters + packed + live


class LivePool:
    """Live models of a process. `budget`: bytes; None: half of the memory that is free when it is
    checked."""

    def __init__(self, threads: Callable[[], int], budget: int | None = None) -> None:
        self._threads, self._budget = threads, budget
        self._opened: dict[ModelKey, OpenedModel] = {}  # the most recently used is last
        self._lock, self._loading, self._hosts = threading.Lock(), threading.Lock(), 0
        self.numbers = count(1)  # request numbers, in order of arrival

    @property
    def nbytes(self) -> int:
        """Bytes of all models and states."""
        return sum(opened.nbytes for opened in [*self._opened.values()])

    @property
    def budget(self) -> int:
        """Bytes that models and states may take."""
        return self._budget or int(
            MODEL_SHARE * (device_memory(choose_device("auto")).free + self.nbytes)
        )

    @contextmanager
    def using(self, model: str, report_wait: ReportWait) -> Iterator[OpenedModel]:
        """Hold a model for the duration of the block; load it first if it is not in memory. Raises
        SlimscopeError: there is no such model, or it cannot be live."""
        base = resolve_model(model)
        key = model_key(model, base, "auto", "auto")
        if self._loading.locked():
            report_wait("Loading a model", 0.0)
        with self._loading:
            opened = self._opened.get(key)
            if opened is None:
                self._drop_models(0)
                seconds = LOAD_S + sum(live_memory(base.facts).values()) / LOAD_BYTES_PER_S
                report_wait(f"Loading {base.facts.title}", seconds)
                opened = self._load(base, model, choose_device("auto"))
            with self._lock:
                self._opened.pop(key, None)
                self._opened[key] = opened
                opened.users += 1
        try:
            use_device(opened.device)
            yield opened
        finally:
            with self._lock:
                opened.users -= 1
            self.release_memory()

    def _load(self, base: ResolvedModel, model: str, device: str) -> OpenedModel:
        require_live(base.facts, device_memory(device))
        dtype: torch.dtype = getattr(torch, base.facts.saved_dtype)
        loaded = load_whole(base, device, dtype, UnrecordedContext(), reads=False)
        tokenizer = open_tokenizer(base, loaded.folder)
        pruning, rounding = SDSJob(model=model), DLQATJob(model=model)
        windows = calibration = text_error = None
        try:
            with tokenizer_session(tokenizer) as session:
                calibration, windows = _tokenized_texts(pruning, session, base)
        except (DatasetError, ModelError) as error:
            text_error = error
        dense = DenseModel(loaded.model, calibration, pruning, rounding, MAX_TABLE_BYTES)
        opened = OpenedModel(dense, tokenizer, device, base, windows, text_error)
        opened.restore_energies()
        return opened

    @contextmanager
    def state(self, opened: OpenedModel, person: str, browser: str) -> Iterator[BrowserState]:
        """Hold the state of a browser for the duration of the block. A new state is dense."""
        key = person, browser
        with self._lock:
            state = opened.states.pop(key, None) or BrowserState(LiveModel(opened.dense))
            opened.states[key] = state
            state.users += 1
        try:
            self.release_memory()
            yield state
        finally:
            state.users -= 1

    def release_memory(self) -> None:
        """Release comparison models and the least recently used states, then models, until the
        budget is met."""
        budget = self.budget
        with self._lock:
            for opened in [*self._opened.values()]:
                if self.nbytes > budget and not opened.users:
                    opened.comparisons = {}
                for key, state in [*opened.states.items()]:
                    if state.users:
                        continue
                    if self.nbytes > budget:
                        state.live.release()
                    if len(opened.states) > MAX_STATES:
                        opened.states.pop(key)
        self._drop_models(budget)

    def _drop_models(self, budget: int) -> None:
        """Drop the least recently used idle models until `budget` is met. The most recently used
        idle model always stays."""
        while self.nbytes > budget:
            with self._lock:
                idle = [key for key, opened in self._opened.items() if not opened.users]
                if len(idle) < 2:
                    return
                self._opened.pop(idle[0])
            gc.collect()

    @contextmanager
    def active_request(self, guest: bool) -> Iterator[None]:
        """Count a host's request as in progress for the duration of the block."""
        with self._lock:
            self._hosts += not guest
        try:
            yield
        finally:
            with self._lock:
                self._hosts -= not guest

    def before_step(self, guest: bool, report_wait: ReportWait, check: Callable[[], None]) -> None:
        """Prepare the next step of a request: a guest waits for hosts, a few seconds at most, since
        a host may always be active. The caller must hold no lock that others wait for. `check`:
        raises CancelledError if the request was cancelled."""
        deadline = time.monotonic() + GUEST_WAITS_S
        if guest and self._hosts:
            report_wait("Waiting for the host's request", GUEST_WAITS_S)
        while guest and self._hosts and time.monotonic() < deadline:
            check()
            time.sleep(RETRY_S)
        check()
        self.set_threads()

    def set_threads(self) -> None:
        """Set the number of threads of this thread's computations to the current CPU share."""
        if (threads := self._threads()) != torch.get_num_threads():
            torch.set_num_threads(threads)


def _tokenized_texts(
    config: SDSJob, tokenizer: TextTokenizer, base: ResolvedModel
) -> tuple[Tensor, Tensor]:
    """Return the calibration token ids of a run with default settings, and the first of its
    evaluation windows: of the same length, so that live and final perplexities compare."""
    calibration_corpus, evaluation_corpus = corpus_names(config, base.facts.default_text)
    length = context_length(config, base.facts)
    evaluation = evaluation_slice(evaluation_corpus, tokenizer, config.windows, length)
    calibration, _ = calibration_slices(
        calibration_corpus,
        tokenizer,
        config.segments,
        length,
        config.seed,
        config.heldout_windows,
        evaluation,
        shared=calibration_corpus == evaluation_corpus,
    )
    return calibration.input_ids, evaluation.input_ids[:WINDOWS]
