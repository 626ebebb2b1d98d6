"""Engine that serves concurrent requests to one model in a background thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from backend.decoding.native.cache import SharedPrefixes, blocks_for
from backend.decoding.native.model import PREFILL
from backend.decoding.serving.loop import DecodingLoop, SequencePass
from backend.decoding.serving.request import Deliver, GenerationRequest
from backend.decoding.serving.sequence import ServedSequence
from backend.decoding.serving.speculation import Speculation
from backend.decoding.target_model import TargetModel
from backend.errors import ComputeError, OverloadError, SlimscopeError
from backend.models.foreign_tokenizer import TextTokenizer

MAX_WAITING, MAX_WAITING_PER_VISITOR = 256, 64
WINDOW_S = 5.0  # speeds are averaged over these last seconds
NEAR_TIES = "; in a batch, near-ties between tokens may resolve differently"


@dataclass(frozen=True)
class EngineStatus:
    """Load and speed of the engine.

    Attributes:
        running: number of running requests.
        waiting: number of queued requests.
        batch: number of sequences in the last pass.
        tokens_per_s: tokens per second of all sequences together, over the last seconds.
        per_sequence: the same per sequence.
        accepted: share of draft tokens that were accepted; None if none were drafted.
        memory: bytes of all caches.
        decoder: description of the decoder.
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
    """Statistics of one pass. `end` is in seconds of the monotonic clock."""

    end: float
    seconds: float
    sequences: int
    tokens: int
    drafted: int
    accepted: int


class ServingEngine(DecodingLoop):
    """A decoding loop in a background thread that delivers events by callback. Common prefixes are
    read once, and drafts are made only where they pay.

    Args:
        tokenizer: decodes tokens into text; None: tokens only, without text or stop strings.
        memory: maximum bytes of all caches together.
        threads: returns the number of compute threads; called before every pass.
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
        self._prefill_tokens, self._threads = PREFILL, threads
        if target.native:
            self._pool = target.native.new_blocks()
            self._prefixes = SharedPrefixes(self._pool)
        self._speculation = Speculation(target)
        self._recent_passes, self._closed = deque[PassRecord](), False
        self._pass_start_s: float | None = None
        self._last_finish_s = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, deliver: Deliver | None = None) -> ServedSequence:
        """Queue a request. `deliver` is called with its events in the engine's thread and must not
        block.

        Raises:
            ConfigError: the request could never be served.
            OverloadError: too many requests wait, or the engine is shutting down.
        """
        with self._changed:
            own_waiting, waiting = self._waiting.count(request.person), len(self._waiting)
            if self._closed:
                raise OverloadError(
                    "The engine is shutting down.", retry_after_s=1.0, requests_ahead=0
                )
            if waiting >= MAX_WAITING or own_waiting >= MAX_WAITING_PER_VISITOR:
                queue_length = waiting if waiting >= MAX_WAITING else own_waiting
                seconds = self._pace_s * (1 + queue_length)
                raise OverloadError(
                    "Too many requests are waiting.",
                    f"{waiting} requests are waiting, {own_waiting} of them yours.",
                    f"Try again in about {seconds:.0f} s.",
                    retry_after_s=seconds,
                    requests_ahead=waiting,
                )
            sequence = super().submit(request, deliver)
            self._changed.notify()
        return sequence

    def status(self) -> EngineStatus:
        """Return the current load and the speed over the last seconds."""
        with self._changed:
            recent = [x for x in self._recent_passes if x.end > time.monotonic() - WINDOW_S]
            running, waiting = len(self._running), len(self._waiting)
            reserved = sum(blocks_for(x.capacity) for x in self._running if x.cache is not None)
        seconds = sum(x.seconds for x in recent)
        speed = sum(x.tokens for x in recent) / seconds if seconds else 0.0
        batch, drafted = recent[-1].sequences if recent else 0, sum(x.drafted for x in recent)
        mean_batch = sum(x.sequences * x.seconds for x in recent) / seconds if seconds else 1.0
        return EngineStatus(
            running,
            waiting,
            batch,
            speed,
            speed / mean_batch,
            sum(x.accepted for x in recent) / drafted if drafted else None,
            (self._pool.used if self._pool else reserved) * self._target.block_size,
            self._target.decoder + ("" if self._pool else NEAR_TIES),
        )

    @property
    def pass_s(self) -> float:
        """Seconds since the current pass started; 0 between passes."""
        start_s = self._pass_start_s
        return time.monotonic() - start_s if start_s else 0.0

    def close(self) -> None:
        """Cancel all requests and stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while self._wait():
            if (threads := self._threads()) != torch.get_num_threads():
                torch.set_num_threads(threads)
            self._pass_start_s = start_s = time.monotonic()
            # passed on without a variable, which would keep the caches alive until the next pass
            self._record(start_s, self.step())
            self._pass_start_s = None
        with self._changed:
            unfinished = [*self._running, *self._waiting.order(())]
        for sequence in unfinished:
            sequence.finish("cancelled")
        if self._prefixes:
            self._prefixes.forget(0)

    def _wait(self) -> bool:
        """Wait for requests. Return False when the engine is closed."""
        with self._changed:
            while not (self._closed or self._running or len(self._waiting)):
                self._changed.wait()
                self._last_finish_s = time.monotonic()
            return not self._closed

    def fail(self, sequence: ServedSequence, error: Exception) -> None:
        """End only this sequence with an error."""
        if not isinstance(error, SlimscopeError):
            error = ComputeError(
                "The answer failed with an error.", f"{type(error).__name__}: {error}"[:300]
            )
        sequence.finish("error", error)

    def _record(self, started: float, items: Sequence[SequencePass]) -> None:
        """Record the statistics of a pass and update the pace of finished requests."""
        if not items:
            return
        now, drafted = time.monotonic(), [item for item in items if item.draft.tokens]
        record = PassRecord(
            now,
            now - started,
            len(items),
            sum(len(item.step.tokens) for item in items if item.step),
            sum(len(item.draft.tokens) for item in drafted),
            sum(len(item.step.tokens) - 1 for item in drafted if item.step),
        )
        with self._changed:
            self._recent_passes.append(record)
            while self._recent_passes[0].end < record.end - WINDOW_S:
                self._recent_passes.popleft()
        if finished := sum(item.sequence.done for item in items):
            self._pace_s = 0.8 * self._pace_s + 0.2 * (record.end - self._last_finish_s) / finished
            self._last_finish_s = record.end
