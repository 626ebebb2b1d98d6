"""Decoding loop of a model for one or many sequences (continuous batching, Yu et al., Orca, 2022;
cache blocks as in vLLM, Kwon et al., 2023).

    loop:  remove cancelled sequences;  admit waiting ones while memory allows
           pass = next token or draft of each generating sequence + a chunk of prompts
           for each sequence: accept tokens, send events, finish

The cache of a generating sequence holds all its tokens except the last, which is the root of the
next tree. A sequence generates the same tokens alone or in a batch, with or without drafts: the
rows of a native pass are independent, and each sequence has its own random numbers.

Memory is counted in blocks. A sequence is admitted if its prompt fits. If the texts later outgrow
the memory, unused shared prefixes are dropped first. Then the most recently admitted sequence is
preempted and restarted later. The first sequence is never preempted, and a request that would not
fit alone is refused, so every sequence finishes.

Accepted length: tokens committed per verification pass, including the bonus token, so decoding
without a drafter has 1.00 (as in Spec-Bench). It equals len(path) unless generation ends inside the
path.
"""

from __future__ import annotations

import heapq
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from backend.decoding.acceptance import Sampling
from backend.decoding.cost_model import LapTimer
from backend.decoding.draft_tree import DraftTokens, Proposer
from backend.decoding.native.cache import CacheBlocks, NativeCache, SharedPrefixes, blocks_for
from backend.decoding.native.model import PREFILL, Segment
from backend.decoding.serving.request import DecodeStep, Deliver, GenerationRequest
from backend.decoding.serving.sequence import NO_DRAFT, ServedSequence
from backend.decoding.serving.speculation import SequenceDrafter, Speculation
from backend.decoding.target_model import TargetModel
from backend.errors import ComputeError, ConfigError
from backend.models.foreign_tokenizer import TextTokenizer


class RequestQueue:
    """Queue of waiting requests. The next one belongs to the visitor with the fewest running
    requests, and among equals to the visitor served least recently. Preempted sequences come
    first."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[ServedSequence]] = {}  # visitor -> waiting requests
        self._preempted = deque[ServedSequence]()
        self._last_turn: dict[str, int] = {}  # visitor -> number of the last turn
        self._turns = 0

    def __len__(self) -> int:
        return len(self._preempted) + sum(map(len, self._queues.values()))

    def count(self, person: str) -> int:
        """Return the number of waiting requests of a visitor."""
        return len(self._queues.get(person, ()))

    def add(self, sequence: ServedSequence) -> None:
        self._queues.setdefault(sequence.request.person, deque()).append(sequence)

    def requeue(self, sequence: ServedSequence) -> None:
        self._preempted.appendleft(sequence)

    def remove(self, sequence: ServedSequence) -> None:
        """Remove a sequence that starts. Uses its visitor's turn unless it was preempted."""
        if sequence not in self._preempted:
            self._turns += 1
            self._last_turn[sequence.request.person] = self._turns
        self._drop(sequence)

    def drop_cancelled(self) -> list[ServedSequence]:
        """Remove and return the cancelled sequences."""
        queues = (self._preempted, *self._queues.values())
        cancelled = [sequence for queue in queues for sequence in queue if sequence.cancelled]
        for sequence in cancelled:
            self._drop(sequence)
        return cancelled

    def _drop(self, sequence: ServedSequence) -> None:
        person = sequence.request.person
        queue = self._preempted if sequence in self._preempted else self._queues[person]
        queue.remove(sequence)
        if not self._queues.get(person, True):
            del self._queues[person]

    def order(self, running: Iterable[ServedSequence]) -> Iterator[ServedSequence]:
        """Yield all waiting sequences in the order in which they would start."""
        yield from [*self._preempted]
        counts, turn = Counter(x.request.person for x in running), self._turns
        queues = {person: iter([*queue]) for person, queue in self._queues.items()}
        visitors = [
            (counts[person], self._last_turn.get(person, 0), index, person)
            for index, person in enumerate(queues)
        ]
        heapq.heapify(visitors)
        while visitors:
            count, _, index, person = heapq.heappop(visitors)
            if (sequence := next(queues[person], None)) is not None:
                yield sequence
                turn += 1
                heapq.heappush(visitors, (count + 1, turn, index, person))


MAX_RUNNING = 64
MAX_LOGPROBS = 100
LONG_PROMPT_TOKENS = 4 * PREFILL  # longer prompts share the prefill with other prompts
INITIAL_PACE_S = 1.0  # assumed seconds between two finished requests


@dataclass
class SequencePass:
    """Part of a pass that belongs to one sequence. `step` is set if the pass committed tokens."""

    sequence: ServedSequence
    draft: DraftTokens
    segment: Segment
    draft_s: float
    step: DecodeStep | None = None


class DecodingLoop:
    """Decodes the sequences of one model. A sequence with a drafter drafts at every step.

    Args:
        tokenizer: decodes tokens into text; None: tokens only, without text or stop strings.
        memory: maximum bytes of all caches together.
    """

    def __init__(
        self,
        target: TargetModel,
        tokenizer: TextTokenizer | None = None,
        memory: int = sys.maxsize,
    ) -> None:
        self._target, self._tokenizer = target, tokenizer
        self._pool: CacheBlocks | None = None
        self._max_blocks = memory // target.block_size
        # prompt tokens in one pass
        self._prefill_tokens = PREFILL if target.native else target.context
        self._prefixes: SharedPrefixes | None = None
        self._speculation: Speculation | None = None
        self._waiting, self._running = RequestQueue(), list[ServedSequence]()
        self._changed, self._pace_s = threading.Condition(), INITIAL_PACE_S
        self._clock = LapTimer(target.device)

    def submit(self, request: GenerationRequest, deliver: Deliver | None = None) -> ServedSequence:
        """Queue a request. `deliver` is called with its events during `step`.

        Raises:
            ConfigError: the request could never be served.
        """
        refuse_prompt(self._target, request)
        drafter = SequenceDrafter(request, self._target.width)
        sequence = ServedSequence(request, deliver, self._tokenizer, drafter)
        if blocks_for(sequence.capacity) > self._max_blocks:
            raise ConfigError(
                "The answer does not fit into memory.",
                f"{sequence.capacity} tokens need {blocks_for(sequence.capacity)} blocks of keys "
                f"and values; there are {self._max_blocks}.",
                "Generate fewer tokens, or shorten the prompt.",
                "max_new_tokens",
            )
        self._waiting.add(sequence)
        return sequence

    def step(self) -> list[SequencePass]:
        """Run one pass and process its results."""
        self._admit()
        try:
            with torch.inference_mode():
                return self._pass()
        except Exception as error:
            for sequence in self._running:
                self.fail(sequence, error)
            return []

    def fail(self, sequence: ServedSequence, error: Exception) -> None:
        """Handle an error of one sequence. Here it ends the loop; a subclass may end only the
        sequence."""
        raise error

    def _admit(self) -> None:
        """Remove cancelled and finished sequences, then start waiting ones while memory allows."""
        with self._changed:
            if not len(self._waiting) and not any(x.cancelled or x.done for x in self._running):
                return
            cancelled = self._waiting.drop_cancelled() + [x for x in self._running if x.cancelled]
            self._running = [x for x in self._running if not (x.cancelled or x.done)]
            waiting = [*self._waiting.order(self._running)]
            blocks = sum(map(self._needed_blocks, self._running)) if waiting else 0
            for sequence in [*waiting]:
                blocks += self._needed_blocks(sequence)
                full = len(self._running) >= MAX_RUNNING or blocks > self._max_blocks
                if full and self._running:
                    break
                self._waiting.remove(sequence)
                self._running.append(waiting.pop(0))
        for sequence in cancelled:
            sequence.finish("cancelled")
        for position, sequence in enumerate(waiting):
            sequence.report_position(position, self._pace_s * (position + 1))

    def _needed_blocks(self, sequence: ServedSequence) -> int:
        """Return the blocks of the text so far, or of the full capacity if the cache cannot
        grow."""
        tokens = len(sequence.committed) + sequence.drafter.nodes
        return blocks_for(tokens if self._pool else sequence.capacity)

    def _pass(self) -> list[SequencePass]:
        started, clock, items = time.monotonic(), self._clock, list[SequencePass]()
        clock.lap()
        planned = self._next_pass()
        rows, planning_s = sum(tokens for _, tokens in planned), clock.lap()
        for sequence, tokens in planned:
            try:
                draft = self._draft(sequence, rows, len(planned))
            except Exception as error:  # raised by the drafter of this sequence
                self.fail(sequence, error)
                continue
            rows += len(draft.tokens)
            segment = sequence.segment(tokens, draft)
            items.append(SequencePass(sequence, draft, segment, clock.lap()))
        if not items:
            return items
        outputs = self._target.run([item.segment for item in items])
        verify_s, ms = clock.lap(), 1000 * (time.monotonic() - started)
        for item, output in zip(items, outputs, strict=True):
            sequence, cache = item.sequence, item.segment.cache
            try:
                item.step = sequence.process(item.draft, output, ms, clock)
            except Exception as error:
                self.fail(sequence, error)
                continue
            generates = len(item.segment.ids) == 1 + len(item.draft.tokens)
            reusable = sequence.done or not generates
            if self._prefixes and isinstance(cache, NativeCache) and reusable:
                self._prefixes.add(sequence.committed, cache.whole_blocks(cache.length))
            if item.step:
                item.step.seconds["cache"] += planning_s
                item.step.seconds.update(draft=item.draft_s, verify=verify_s)
        return items

    def _next_pass(self) -> list[tuple[ServedSequence, int]]:
        """Return the sequences of the next pass with their numbers of tokens. Preempts sequences
        until the rest fits in memory."""
        while True:
            planned, blocks = self._schedule(), 0
            if self._pool is None:  # memory of the full capacity was reserved on admission
                return planned
            for sequence, tokens in planned:
                assert isinstance(sequence.cache, NativeCache)
                blocks += sequence.cache.missing(tokens + sequence.drafter.nodes - 1)
            if self._prefixes:
                self._prefixes.forget(self._max_blocks - blocks)
            if self._pool.used + blocks <= self._max_blocks:
                return planned
            last = self._running.pop()
            if self._running:
                last.cache = None
                with self._changed:
                    self._waiting.requeue(last)
            else:
                last.finish(
                    "error",
                    ComputeError(
                        "There is no memory left for keys and values.",
                        "Other programs on this machine use it.",
                    ),
                )

    def _schedule(self) -> list[tuple[ServedSequence, int]]:
        """Return sequences with their numbers of tokens: one token of each generating sequence and
        up to `PREFILL` prompt tokens. The oldest prompt comes first, then the shortest ones. A long
        oldest prompt gets half of the prefill, so that it does not block the others."""
        generating = [x for x in self._running if x.cache is not None and x.unread == 1]
        planned, budget_tokens = [(sequence, 1) for sequence in generating], self._prefill_tokens
        prompts = [x for x in self._running if x.cache is None or x.unread > 1]
        prompts[1:] = sorted(prompts[1:], key=lambda sequence: sequence.unread)
        for index, sequence in enumerate(prompts):
            if not budget_tokens:
                break
            if sequence.cache is None:
                self._open(sequence)
            halved = index == 0 and len(prompts) > 1 and sequence.unread > LONG_PROMPT_TOKENS
            tokens = min(sequence.unread, self._prefill_tokens // 2 if halved else budget_tokens)
            budget_tokens -= tokens
            planned.append((sequence, tokens))
        return planned

    def _open(self, sequence: ServedSequence) -> None:
        """Create the cache of a sequence, starting with shared blocks where it may use them."""
        needs_all_tokens = sequence.needs_states or sequence.needs_logits
        reusable = self._prefixes if not needs_all_tokens else None
        shared = reusable.find(sequence.committed[:-1]) if reusable else []
        sequence.open(self._target.new_cache(sequence.capacity, self._pool, shared))

    def _draft(self, sequence: ServedSequence, rows: int, sequences: int) -> DraftTokens:
        """Draft for a sequence in a pass over `sequences` sequences with `rows` rows so far."""
        drafter = sequence.drafter
        if drafter.nodes == 1 or sequence.unread > 1 or not sequence.generated:
            return NO_DRAFT
        if self._speculation and not self._speculation.pays_off(drafter, rows, sequences):
            drafter.record_skip()
            return NO_DRAFT
        return drafter.propose(sequence.committed)


def answers(
    target: TargetModel, requests: Sequence[GenerationRequest]
) -> Iterator[tuple[int, DecodeStep]]:
    """Answer requests in one batch. Yield the index of a request and its next step.

    Raises:
        ConfigError: a request cannot be answered.
    """
    loop = DecodingLoop(target)
    sequences = [*map(loop.submit, requests)]
    while not all(sequence.done for sequence in sequences):
        for item in loop.step():
            if item.step:
                yield sequences.index(item.sequence), item.step


def decode(
    target: TargetModel,
    proposer: Proposer,
    prompt: Sequence[int],
    limit: int,
    ends: Collection[int] = (),
    sampling: Sampling | None = None,
) -> Iterator[DecodeStep]:
    """Generate up to `limit` tokens after `prompt`, greedily without `sampling`. Stop after a token
    of `ends`.

    Raises:
        ConfigError: the prompt is empty, or prompt and answer exceed the model's context.
    """
    request = GenerationRequest(
        tuple(prompt), limit, sampling or Sampling(), frozenset(ends), drafter=proposer
    )
    return (step for _, step in answers(target, [request]))


def refuse_prompt(target: TargetModel, request: GenerationRequest) -> None:
    """Raise `ConfigError` if the prompt is empty or has unknown tokens, or if the numbers of new
    tokens or log-probabilities are out of range."""
    prompt, limit = request.prompt, request.max_tokens
    if not prompt:
        raise ConfigError(
            "There is no prompt.", "The prompt is empty.", "Enter a prompt.", "prompt"
        )
    if max(prompt) >= target.vocabulary or min(prompt) < 0:
        raise ConfigError(
            "The prompt has unknown tokens.",
            f"It contains token id {max(prompt)}; the vocabulary has {target.vocabulary} tokens.",
            "Use the model's own tokenizer.",
            "prompt",
        )
    if limit < (0 if request.echo else 1) or len(prompt) + limit > target.context:
        raise ConfigError(
            f"{limit} new tokens do not fit into the context.",
            f"The prompt has {len(prompt)} tokens; {target.limit}.",
            "Generate fewer tokens, or shorten the prompt.",
            "max_new_tokens",
        )
    if not 0 <= (request.logprobs or 0) <= MAX_LOGPROBS:
        raise ConfigError(
            "The number of log-probabilities is out of range.",
            f"The request asks for {request.logprobs}; the range is 0 to {MAX_LOGPROBS}.",
            "",
            "logprobs",
        )
