"""The decoding loop of a model, for one sequence or many at the same time (continuous batching, Yu
et al., Orca, 2022; blocks as in vLLM, Kwon et al., 2023).

    loop:  take in who waits, while there is room;  free who has left
           pass = the next token of every sequence, or a draft of some;  a part of a prompt
           each sequence: accept, tell, end

The cache of a sequence that writes holds all its tokens but the last, the root of the next tree. A
sequence writes the same tokens alone and beside any others, with drafts and without: a row of a
native pass does not depend on the others, and each has random numbers of its own.

Memory is counted in blocks. Who comes is taken in where its prompt has room; where the texts then
outgrow it, what nobody reads any more is forgotten first, and then the sequence that came last
begins again later. The first is never stopped, and one that would not fit alone is refused, so that
all end.

Accepted length: tokens committed per verification pass, including the bonus token, so that decoding
without a drafter has 1.00 (as in Spec-Bench). It equals len(path) unless generation ends inside it.
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
from backend.decoding.serving.speculation import Drafts, Speculation
from backend.decoding.target_model import TargetModel
from backend.errors import ComputeError, ConfigError
from backend.models.foreign_tokenizer import TextTokenizer


class WaitingLine:
    """Requests that wait. The next is of the person of whom the fewest run, of those the one who
    was served longest ago; what had to make room for others goes before all."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[ServedSequence]] = {}
        self._back = deque[ServedSequence]()
        self._served: dict[str, int] = {}  # person -> number of the last turn
        self._turns = 0

    def __len__(self) -> int:
        return len(self._back) + sum(map(len, self._lines.values()))

    def of(self, person: str) -> int:
        """How many requests of a person wait."""
        return len(self._lines.get(person, ()))

    def add(self, sequence: ServedSequence) -> None:
        self._lines.setdefault(sequence.request.person, deque()).append(sequence)

    def put_back(self, sequence: ServedSequence) -> None:
        self._back.appendleft(sequence)

    def remove(self, sequence: ServedSequence) -> None:
        """Take one out whose turn it is."""
        if sequence not in self._back:
            self._turns += 1
            self._served[sequence.request.person] = self._turns
        self._drop(sequence)

    def drop_cancelled(self) -> list[ServedSequence]:
        """Take out who does not wait any more."""
        gone = [x for line in (self._back, *self._lines.values()) for x in line if x.cancelled]
        for sequence in gone:
            self._drop(sequence)
        return gone

    def _drop(self, sequence: ServedSequence) -> None:
        person = sequence.request.person
        line = self._back if sequence in self._back else self._lines[person]
        line.remove(sequence)
        if not self._lines.get(person, True):
            del self._lines[person]

    def order(self, running: Iterable[ServedSequence]) -> Iterator[ServedSequence]:
        """All that wait, as they will be served if nobody leaves."""
        yield from [*self._back]
        counts, turn = Counter(x.request.person for x in running), self._turns
        lines = {person: iter([*line]) for person, line in self._lines.items()}
        people = [
            (counts[person], self._served.get(person, 0), place, person)
            for place, person in enumerate(lines)
        ]
        heapq.heapify(people)
        while people:
            count, _, place, person = heapq.heappop(people)
            if (sequence := next(lines[person], None)) is not None:
                yield sequence
                turn += 1
                heapq.heappush(people, (count + 1, turn, place, person))


MOST_RUNNING = 64
MOST_LOGPROBS = 100
LONG = 4 * PREFILL  # tokens of a prompt that the others do not wait for
FIRST_PACE_S = 1.0  # between two that end, before any has


@dataclass
class Work:
    """What a pass does for a sequence, and the step that wrote tokens."""

    sequence: ServedSequence
    draft: DraftTokens
    segment: Segment
    draft_s: float
    step: DecodeStep | None = None


class DecodingLoop:
    """The sequences of one model; see the module. Drafts are made for every step of a sequence that
    has a drafter.

    Args:
        tokenizer: None: of tokens no text is told, and none ends them.
        memory: bytes of all caches.
    """

    def __init__(
        self,
        target: TargetModel,
        tokenizer: TextTokenizer | None = None,
        memory: int = sys.maxsize,
    ) -> None:
        self._target, self._tokenizer = target, tokenizer
        self._pool: CacheBlocks | None = None
        self._blocks = memory // target.block_size
        self._prefill = PREFILL if target.native else target.context  # tokens of prompts in a pass
        self._prefixes: SharedPrefixes | None = None
        self._speculation: Speculation | None = None
        self._waiting, self._running = WaitingLine(), list[ServedSequence]()
        self._changed, self._pace = threading.Condition(), FIRST_PACE_S
        self._clock = LapTimer(target.device)

    def submit(self, request: GenerationRequest, deliver: Deliver | None = None) -> ServedSequence:
        """Take a request; `deliver` gets its events within `step`. Raises ConfigError: it could
        never be served."""
        refuse_prompt(self._target, request)
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
        self._waiting.add(sequence)
        return sequence

    def step(self) -> list[Work]:
        """One pass, and what follows from it."""
        self._take_in()
        try:
            with torch.inference_mode():
                return self._pass()
        except Exception as error:
            for sequence in self._running:
                self.fail(sequence, error)
            return []

    def fail(self, sequence: ServedSequence, error: Exception) -> None:
        """End a sequence with an error: here all of them."""
        raise error

    def _take_in(self) -> None:
        """Let go who has left or is done, take in who has room."""
        with self._changed:
            if not len(self._waiting) and not any(x.cancelled or x.done for x in self._running):
                return
            gone = self._waiting.drop_cancelled() + [x for x in self._running if x.cancelled]
            self._running = [x for x in self._running if not (x.cancelled or x.done)]
            left = [*self._waiting.order(self._running)]
            needed = sum(map(self._needed, self._running)) if left else 0
            for sequence in [*left]:
                needed += self._needed(sequence)
                full = len(self._running) >= MOST_RUNNING or needed > self._blocks
                if full and self._running:
                    break
                self._waiting.remove(sequence)
                self._running.append(left.pop(0))
        for sequence in gone:
            sequence.finish("cancelled")
        for place, sequence in enumerate(left):
            sequence.tell_place(place, self._pace * (place + 1))

    def _needed(self, sequence: ServedSequence) -> int:
        """Blocks of the text so far; of the whole, where they cannot grow."""
        so_far = len(sequence.committed) + sequence.drafts.nodes
        return blocks_for(so_far if self._pool else sequence.capacity)

    def _pass(self) -> list[Work]:
        started, clock, work = time.monotonic(), self._clock, list[Work]()
        clock.lap()
        plan = self._plan()
        rows, planned_s = sum(tokens for _, tokens in plan), clock.lap()
        for sequence, tokens in plan:
            try:
                draft = self._draft(sequence, rows, len(plan))
            except Exception as error:  # of its drafter
                self.fail(sequence, error)
                continue
            rows += len(draft.tokens)
            work.append(Work(sequence, draft, sequence.segment(tokens, draft), clock.lap()))
        if not work:
            return work
        found = self._target.run([each.segment for each in work])
        verify_s, ms = clock.lap(), 1000 * (time.monotonic() - started)
        for each, read in zip(work, found, strict=True):
            sequence, cache = each.sequence, each.segment.cache
            try:
                each.step = sequence.take(each.draft, read, ms, clock)
            except Exception as error:
                self.fail(sequence, error)
                continue
            writes = len(each.segment.ids) == 1 + len(each.draft.tokens)
            if self._prefixes and isinstance(cache, NativeCache) and (sequence.done or not writes):
                self._prefixes.add(sequence.committed, cache.whole_blocks(cache.length))
            if each.step:
                each.step.seconds["cache"] += planned_s
                each.step.seconds.update(draft=each.draft_s, verify=verify_s)
        return work

    def _plan(self) -> list[tuple[ServedSequence, int]]:
        """The sequences of the next pass, and how many tokens each reads. There is memory for
        them."""
        while True:
            plan, needed = self._shares(), 0
            if self._pool is None:  # each has the memory of its whole text
                return plan
            for sequence, tokens in plan:
                assert isinstance(sequence.cache, NativeCache)
                needed += sequence.cache.missing(tokens + sequence.drafts.nodes - 1)
            if self._prefixes:
                self._prefixes.forget(self._blocks - needed)
            if self._pool.used + needed <= self._blocks:
                return plan
            last = self._running.pop()  # the one that came last begins again later
            if self._running:
                last.cache = None
                with self._changed:
                    self._waiting.put_back(last)
            else:
                last.finish(
                    "error",
                    ComputeError(
                        "There is no memory left for keys and values.", "Something else uses it."
                    ),
                )

    def _shares(self) -> list[tuple[ServedSequence, int]]:
        """The last token of each that writes, and of prompts `PREFILL` tokens: those of the one
        that came first, then of the shortest. Of a long one half, so that it holds nobody up."""
        writing = [x for x in self._running if x.cache is not None and x.unread == 1]
        plan, room = [(sequence, 1) for sequence in writing], self._prefill
        reading = [x for x in self._running if x.cache is None or x.unread > 1]
        reading[1:] = sorted(reading[1:], key=lambda sequence: sequence.unread)
        for number, sequence in enumerate(reading):
            if not room:
                break
            if sequence.cache is None:
                self._open(sequence)
            halved = number == 0 and len(reading) > 1 and sequence.unread > LONG
            tokens = min(sequence.unread, self._prefill // 2 if halved else room)
            room -= tokens
            plan.append((sequence, tokens))
        return plan

    def _open(self, sequence: ServedSequence) -> None:
        """Give a sequence a cache, with what others have read of its beginning."""
        alone = sequence.needs_states or sequence.needs_logits or not self._prefixes
        held = [] if alone or not self._prefixes else self._prefixes.find(sequence.committed[:-1])
        sequence.open(self._target.new_cache(sequence.capacity, self._pool, held))

    def _draft(self, sequence: ServedSequence, rows: int, sequences: int) -> DraftTokens:
        """A draft for one of the sequences of a pass, which has as many rows so far."""
        drafts = sequence.drafts
        if drafts.nodes == 1 or sequence.unread > 1 or not sequence.generated:
            return NO_DRAFT
        if self._speculation and not self._speculation.pays(drafts, rows, sequences):
            drafts.rest()
            return NO_DRAFT
        return drafts.propose(sequence.committed)


def answers(
    target: TargetModel, requests: Sequence[GenerationRequest]
) -> Iterator[tuple[int, DecodeStep]]:
    """Answer requests at the same time: the number of a request and a step of it, as they come.
    Raises ConfigError: one cannot be answered."""
    loop = DecodingLoop(target)
    sequences = [*map(loop.submit, requests)]
    while not all(sequence.done for sequence in sequences):
        for work in loop.step():
            if work.step:
                yield sequences.index(work.sequence), work.step


def decode(
    target: TargetModel,
    proposer: Proposer,
    prompt: Sequence[int],
    limit: int,
    ends: Collection[int] = (),
    sampling: Sampling | None = None,
) -> Iterator[DecodeStep]:
    """Generate up to `limit` tokens after `prompt`, greedily without `sampling`; stop after a token
    of `ends`. Raises ConfigError: the prompt is empty, or prompt and response exceed the context of
    the model."""
    request = GenerationRequest(
        tuple(prompt), limit, sampling or Sampling(), frozenset(ends), drafter=proposer
    )
    return (step for _, step in answers(target, [request]))


def refuse_prompt(target: TargetModel, request: GenerationRequest) -> None:
    """Raise `ConfigError` for a prompt that cannot be read, too few or too many new tokens, or too
    many log-probabilities."""
    prompt, limit = request.prompt, request.max_tokens
    if not prompt:
        raise ConfigError(
            "There is no prompt.", "The prompt is empty.", "Enter a prompt.", "prompt"
        )
    if max(prompt) >= target.vocabulary or min(prompt) < 0:
        raise ConfigError(
            "The prompt has unknown tokens.",
            f"It holds token id {max(prompt)}; the vocabulary has {target.vocabulary} tokens.",
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
    if not 0 <= (request.logprobs or 0) <= MOST_LOGPROBS:
        raise ConfigError(
            "So many log-probabilities are not told.",
            f"{request.logprobs} are asked for; 0 to {MOST_LOGPROBS} are told.",
            "",
            "logprobs",
        )
