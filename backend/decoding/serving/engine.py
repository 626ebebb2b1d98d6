"""The engine that serves the requests of many people to one model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from backend.decoding.native.cache import SharedPrefixes, blocks_for
from backend.decoding.native.model import PREFILL
from backend.decoding.serving.loop import DecodingLoop, Work
from backend.decoding.serving.request import Deliver, GenerationRequest
from backend.decoding.serving.sequence import ServedSequence
from backend.decoding.serving.speculation import Speculation
from backend.decoding.target_model import TargetModel
from backend.errors import ComputeError, OverloadError, SlimscopeError
from backend.models.foreign_tokenizer import TextTokenizer

MOST_WAITING, MOST_OF_A_PERSON = 256, 64
WINDOW_S = 5.0  # over which speeds are told
NEAR_TIES = "; beside others a text may differ where two tokens are nearly equally likely"


@dataclass(frozen=True)
class EngineStatus:
    """What the engine does.

    Attributes:
        batch: sequences of the last pass.
        tokens_per_s: of all, over the last seconds; `per_sequence`: of each.
        accepted: share of draft tokens that were right; None: none were drafted.
        memory: bytes of caches.
        decoder: what computes, in words.
    """

    running: int
    waiting: int
    batch: int
    tokens_per_s: float
    per_sequence: float
    accepted: float | None
    memory: int
    decoder: str


@dataclass(frozen=True)
class PassRecord:
    """When a pass ended, and what it took and gave."""

    end: float
    seconds: float
    sequences: int
    tokens: int
    drafted: int
    accepted: int


class ServingEngine(DecodingLoop):
    """A loop in a thread of its own, which calls back. Beginnings that were read before are shared,
    and drafts are made where they pay.

    Args:
        tokenizer: None: of tokens no text is told, and none ends them.
        memory: bytes of all caches.
        threads: how many it may compute with; asked before every pass.
    """

    def __init__(
        self,
        target: TargetModel,
        tokenizer: TextTokenizer | None,
        *,
        memory: int,
        threads: Callable[[], int],
    ) -> None:
        super().__init__(target, tokenizer, memory)
        self._prefill, self._threads = PREFILL, threads
        if target.native:
            self._pool = target.native.new_blocks()
            self._prefixes = SharedPrefixes(self._pool)
        self._speculation = Speculation(target)
        self._passed, self._closed = deque[PassRecord](), False
        self._pass_began: float | None = None
        self._ended = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, deliver: Deliver | None = None) -> ServedSequence:
        """Serve a request; `deliver` gets its events, must not wait, and is called by the engine's
        thread. Raises ConfigError: it could never be served; OverloadError: too many wait."""
        with self._changed:
            of_person, before = self._waiting.of(request.person), len(self._waiting)
            if self._closed:
                raise OverloadError("The engine is ending.", retry_after_s=1.0, before=0)
            if before >= MOST_WAITING or of_person >= MOST_OF_A_PERSON:
                seconds = self._pace * (1 + (before if before >= MOST_WAITING else of_person))
                raise OverloadError(
                    "Too many requests wait.",
                    f"{before} requests wait already, {of_person} of them yours.",
                    f"Try again in about {seconds:.0f} s.",
                    retry_after_s=seconds,
                    before=before,
                )
            sequence = super().submit(request, deliver)
            self._changed.notify()
        return sequence

    def status(self) -> EngineStatus:
        with self._changed:
            passed = [x for x in self._passed if x.end > time.monotonic() - WINDOW_S]
            running, waiting = len(self._running), len(self._waiting)
            whole = sum(blocks_for(x.capacity) for x in self._running if x.cache is not None)
        seconds = sum(x.seconds for x in passed)
        speed = sum(x.tokens for x in passed) / seconds if seconds else 0.0
        batch, drafted = passed[-1].sequences if passed else 0, sum(x.drafted for x in passed)
        writing = sum(x.sequences * x.seconds for x in passed) / seconds if seconds else 1.0
        return EngineStatus(
            running,
            waiting,
            batch,
            speed,
            speed / writing,
            sum(x.accepted for x in passed) / drafted if drafted else None,
            (self._pool.used if self._pool else whole) * self._target.block_size,
            self._target.decoder + ("" if self._pool else NEAR_TIES),
        )

    @property
    def pass_s(self) -> float:
        """Seconds since the pass at work began; 0 between two."""
        began = self._pass_began
        return time.monotonic() - began if began else 0.0

    def close(self) -> None:
        """End all that is served, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while self._wait():
            if (threads := self._threads()) != torch.get_num_threads():
                torch.set_num_threads(threads)
            self._pass_began = began = time.monotonic()
            self._record(began, self.step())  # whose caches are not kept
            self._pass_began = None
        with self._changed:
            left = [*self._running, *self._waiting.order(())]
        for sequence in left:
            sequence.finish("cancelled")
        if self._prefixes:
            self._prefixes.forget(0)

    def _wait(self) -> bool:
        """Wait for requests; False when the engine is closed."""
        with self._changed:
            while not (self._closed or self._running or len(self._waiting)):
                self._changed.wait()
                self._ended = time.monotonic()
            return not self._closed

    def fail(self, sequence: ServedSequence, error: Exception) -> None:
        """End this sequence with an error."""
        if not isinstance(error, SlimscopeError):
            error = ComputeError(
                "The answer ended with an error.", f"{type(error).__name__}: {error}"[:300]
            )
        sequence.finish("error", error)

    def _record(self, started: float, work: Sequence[Work]) -> None:
        if not work:
            return
        now, drafted = time.monotonic(), [each for each in work if each.draft.tokens]
        record = PassRecord(
            now,
            now - started,
            len(work),
            sum(len(each.step.tokens) for each in work if each.step),
            sum(len(each.draft.tokens) for each in drafted),
            sum(len(each.step.tokens) - 1 for each in drafted if each.step),
        )
        with self._changed:
            self._passed.append(record)
            while self._passed[0].end < record.end - WINDOW_S:
                self._passed.popleft()
        if ended := sum(each.sequence.done for each in work):
            self._pace = 0.8 * self._pace + 0.2 * (record.end - self._ended) / ended
            self._ended = record.end
