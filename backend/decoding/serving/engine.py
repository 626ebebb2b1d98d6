"""The engine: one loop a model, which serves all requests at the same time (continuous batching, Yu
et al., Orca, 2022; blocks as in vLLM, Kwon et al., 2023).

    loop:  take in who waits, while there is room;  free who has left
           pass = the next token of every sequence, or a draft of some;  a part of a prompt
           each sequence: accept, tell, end

A sequence writes the same tokens alone and beside any others, with drafts and without: a row of a
native pass does not depend on the others, and each has random numbers of its own.

Memory is counted in blocks. Who comes is taken in where its prompt has room; where the texts then
outgrow it, what nobody reads any more is forgotten first, and then the sequence that came last
begins again later. The first is never stopped, and one that would not fit alone is refused, so that
all end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from backend.decoding.draft_tree import DraftTokens
from backend.decoding.engine import refuse_prompt
from backend.decoding.native.cache import NativeCache, blocks_for
from backend.decoding.native.model import PREFILL, Segment
from backend.decoding.serving.passes import passes_of
from backend.decoding.serving.request import Deliver, GenerationRequest
from backend.decoding.serving.sequence import NO_DRAFT, ServedSequence
from backend.decoding.serving.shared_prefixes import SharedPrefixes
from backend.decoding.serving.speculation import Drafts, Speculation
from backend.decoding.serving.waiting_line import WaitingLine
from backend.decoding.target_model import TargetModel
from backend.errors import ComputeError, ConfigError, OverloadError, SlimscopeError

MOST_RUNNING = 64
MOST_WAITING, MOST_OF_A_PERSON = 256, 64
MOST_LOGPROBS = 100
LONG = 4 * PREFILL  # tokens of a prompt that the others do not wait for
WINDOW_S = 5.0  # over which speeds are told
FIRST_PACE_S = 1.0  # between two that end, before any has


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


@dataclass
class Work:
    """What a pass does for a sequence; `new`: tokens that it wrote."""

    sequence: ServedSequence
    draft: DraftTokens
    segment: Segment
    new: int = 0


class Ticket:
    """A request that was taken."""

    def __init__(self, engine: ServingEngine, sequence: ServedSequence) -> None:
        self._engine, self._sequence = engine, sequence

    def cancel(self) -> None:
        """End it before the next pass."""
        self._sequence.cancelled = True
        self._engine.wake()

    @property
    def done(self) -> bool:
        return self._sequence.done


class ServingEngine:
    """Serves requests to one model in a thread of its own, which calls back; see the module.

    Args:
        tokenizer: None: of tokens no text is told, and none ends them.
        memory: bytes of all caches.
        threads: how many it may compute with; asked before every pass.
    """

    def __init__(
        self,
        target: TargetModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        memory: int,
        threads: Callable[[], int],
    ) -> None:
        self._target, self._tokenizer, self._threads = target, tokenizer, threads
        self._passes = passes_of(target)
        self._blocks = memory // self._passes.block_size
        self._prefixes = SharedPrefixes(self._passes.blocks) if self._passes.blocks else None
        self._speculation = Speculation(target)
        self._waiting, self._running = WaitingLine(), list[ServedSequence]()
        self._changed, self._closed = threading.Condition(), False
        self._passed = deque[PassRecord]()
        self._pace, self._ended = FIRST_PACE_S, time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, deliver: Deliver) -> Ticket:
        """Serve a request; `deliver` gets its events, must not wait, and is called by the engine's
        thread. Raises ConfigError: it could never be served; OverloadError: too many wait."""
        refuse_prompt(self._target, request.prompt, request.max_tokens, 0 if request.echo else 1)
        if not 0 <= (request.logprobs or 0) <= MOST_LOGPROBS:
            why = f"{request.logprobs} are asked for; 0 to {MOST_LOGPROBS} are told."
            raise ConfigError("So many log-probabilities are not told.", why, "", "logprobs")
        drafts = Drafts(request, self._target.width)
        sequence = ServedSequence(request, deliver, self._tokenizer, drafts)
        if blocks_for(sequence.capacity) > self._blocks:
            raise ConfigError(
                "The answer does not fit into memory.",
                f"{sequence.capacity} tokens need {blocks_for(sequence.capacity)} blocks of keys "
                f"and values; there are {self._blocks}.",
                "Generate fewer tokens, or shorten the prompt.",
                "max_new_tokens",
            )
        with self._changed:
            self._refuse_overload(request.person)
            self._waiting.add(sequence)
            self._changed.notify()
        return Ticket(self, sequence)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Requests submitted within begin with the same pass: which passes follow, and with PyTorch
        the last bits of their numbers, does not depend on when each came."""
        with self._changed:
            yield

    def _refuse_overload(self, person: str) -> None:
        of_person, before = self._waiting.of(person), len(self._waiting)
        if self._closed:
            raise OverloadError("The engine is ending.", retry_after_s=1.0, before=0)
        if before < MOST_WAITING and of_person < MOST_OF_A_PERSON:
            return
        seconds = self._pace * (1 + (before if before >= MOST_WAITING else of_person))
        why = f"{before} requests wait already, {of_person} of them yours."
        do = f"Try again in about {seconds:.0f} s."
        raise OverloadError(
            "Too many requests wait.", why, do, retry_after_s=seconds, before=before
        )

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def status(self) -> EngineStatus:
        with self._changed:
            passed = [x for x in self._passed if x.end > time.monotonic() - WINDOW_S]
            running, waiting = len(self._running), len(self._waiting)
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
            self._passes.used * self._passes.block_size,
            self._target.decoder + self._passes.words,
        )

    def close(self) -> None:
        """End all that is served, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while self._take_in():
            try:
                with torch.inference_mode():
                    self._step()
            except Exception as error:
                for sequence in self._running:
                    sequence.finish("error", _told(error))
        with self._changed:
            left = [*self._running, *self._waiting.order(())]
        for sequence in left:
            sequence.finish("cancelled")
        if self._prefixes:
            self._prefixes.forget(0)

    def _take_in(self) -> bool:
        """Let go who has left or is done, take in who has room; False when the engine is closed."""
        with self._changed:
            while not (self._closed or self._running or len(self._waiting)):
                self._changed.wait()
                self._ended = time.monotonic()
            if self._closed:
                return False
            gone = self._waiting.drop_cancelled() + [x for x in self._running if x.cancelled]
            self._running = [x for x in self._running if not (x.cancelled or x.done)]
            needed = sum(map(self._needed, self._running))
            for sequence in self._waiting.order(self._running):
                needed += self._needed(sequence)
                full = len(self._running) >= MOST_RUNNING or needed > self._blocks
                if full and self._running:
                    break
                self._waiting.remove(sequence)
                self._running.append(sequence)
            left = [*self._waiting.order(self._running)]
        for sequence in gone:
            sequence.finish("cancelled")
        for place, sequence in enumerate(left):
            sequence.tell_place(place, self._pace * (place + 1))
        return True

    def _needed(self, sequence: ServedSequence) -> int:
        """Blocks of the text so far; of the whole, where they cannot grow."""
        so_far = len(sequence.committed) + sequence.drafts.nodes
        return blocks_for(so_far if self._passes.blocks else sequence.capacity)

    def _step(self) -> None:
        """One pass, and what follows from it."""
        if (threads := self._threads()) != torch.get_num_threads():
            torch.set_num_threads(threads)
        started, work = time.monotonic(), list[Work]()
        plan = self._plan()
        rows = sum(tokens for _, tokens in plan)
        for sequence, tokens in plan:
            try:
                draft = self._draft(sequence, rows, len(plan))
            except Exception as error:  # of its drafter
                sequence.finish("error", _told(error))
                continue
            rows += len(draft.tokens)
            work.append(Work(sequence, draft, sequence.segment(tokens, draft)))
        if not work:
            return
        found = self._passes.run([each.segment for each in work])
        seconds = time.monotonic() - started
        for each, read in zip(work, found, strict=True):
            self._take(each, *read, 1000 * seconds)
        self._record(seconds, work)

    def _take(self, work: Work, hidden: Tensor, logits: Tensor, ms: float) -> None:
        """Give a sequence what was computed, and remember what it has read."""
        sequence, cache = work.sequence, work.segment.cache
        try:
            work.new = sequence.take(work.draft, hidden, logits, ms)
        except Exception as error:
            sequence.finish("error", _told(error))
            return
        writes = len(work.segment.ids) == 1 + len(work.draft.tokens)
        if self._prefixes and isinstance(cache, NativeCache) and (sequence.done or not writes):
            self._prefixes.add(sequence.committed, cache.whole_blocks(cache.length))

    def _plan(self) -> list[tuple[ServedSequence, int]]:
        """The sequences of the next pass, and how many tokens each reads. There is memory for
        them."""
        while True:
            plan, needed = self._shares(), 0
            for sequence, tokens in plan:
                assert sequence.cache is not None
                most = tokens + sequence.drafts.nodes - 1
                needed += self._passes.missing(sequence.cache, most)
            if self._prefixes:
                self._prefixes.forget(self._blocks - needed)
            if self._passes.used + needed <= self._blocks:
                return plan
            self._make_way()

    def _shares(self) -> list[tuple[ServedSequence, int]]:
        """The last token of each that writes, and of prompts `PREFILL` tokens: those of the one
        that came first, then of the shortest. Of a long one half, so that it holds nobody up."""
        writing = [x for x in self._running if x.cache is not None and x.unread == 1]
        plan, room = [(sequence, 1) for sequence in writing], PREFILL
        reading = [sequence for sequence in self._running if sequence not in writing]
        reading[1:] = sorted(reading[1:], key=lambda sequence: sequence.unread)
        for number, sequence in enumerate(reading):
            if not room:
                break
            if sequence.cache is None:
                self._open(sequence)
            halved = number == 0 and len(reading) > 1 and sequence.unread > LONG
            tokens = min(sequence.unread, PREFILL // 2 if halved else room)
            room -= tokens
            plan.append((sequence, tokens))
        return plan

    def _open(self, sequence: ServedSequence) -> None:
        """Give a sequence a cache, with what others have read of its beginning."""
        alone = sequence.needs_states or sequence.needs_logits or not self._prefixes
        held = [] if alone or not self._prefixes else self._prefixes.find(sequence.committed[:-1])
        sequence.open(self._passes.new_cache(sequence.capacity, held))

    def _make_way(self) -> None:
        """Let the sequence that came last begin again later."""
        last = self._running.pop()
        if not self._running:
            what = "There is no memory left for keys and values."
            last.finish("error", ComputeError(what, "Something else uses it."))
            return
        last.cache = None
        with self._changed:
            self._waiting.put_back(last)

    def _draft(self, sequence: ServedSequence, rows: int, sequences: int) -> DraftTokens:
        """A draft for one of the sequences of a pass, which has as many rows so far."""
        drafts = sequence.drafts
        if drafts.nodes == 1 or sequence.unread > 1 or not sequence.generated:
            return NO_DRAFT
        if not self._speculation.pays(drafts, rows, sequences):
            drafts.rest()
            return NO_DRAFT
        return drafts.propose(sequence.committed, self._target.context - len(sequence.committed))

    def _record(self, seconds: float, work: Sequence[Work]) -> None:
        drafted = [each for each in work if each.draft.tokens]
        record = PassRecord(
            time.monotonic(),
            seconds,
            len(work),
            sum(each.new for each in work),
            sum(len(each.draft.tokens) for each in drafted),
            sum(each.new - 1 for each in drafted),
        )
        with self._changed:
            self._passed.append(record)
            while self._passed[0].end < record.end - WINDOW_S:
                self._passed.popleft()
        if ended := sum(each.sequence.done for each in work):
            self._pace = 0.8 * self._pace + 0.2 * (record.end - self._ended) / ended
            self._ended = record.end


def _told(error: Exception) -> SlimscopeError:
    if isinstance(error, SlimscopeError):
        return error
    return ComputeError("The answer ended with an error.", f"{type(error).__name__}: {error}"[:300])
