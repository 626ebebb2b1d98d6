"""How fast several proposers decode the same prompts: measured, never derived.

For every prompt all arms answer in turn, several rounds, each round in another order, so that a
burst of another program does not fall on one arm alone. A round that is not counted warms up.

    tokens/s of an arm and round      mean over prompts of new tokens / seconds of the whole answer
    speed-up                          tokens/s over that of the first arm, vanilla, same round
    break-even                        seconds of a pass over those of a vanilla pass: the accepted
                                      length at which an arm is as fast as vanilla

The prompt's pass is part of an answer's seconds: a reader waits for it (Spec-Bench's convention).
Medians and ranges are over rounds. Accepted lengths and texts are the same in every round, since
decoding is greedy. Beside ours stand decoders a user would run instead: transformers, and
llama.cpp, which is optional and should be built for this processor
(CMAKE_ARGS=-DGGML_NATIVE=ON).
"""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice, takewhile
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import PreTrainedModel

from backend.decoding.cost_model import LapTimer
from backend.decoding.draft_tree import NO_TREE, NoDraft, Proposer
from backend.decoding.draft_tree import Path as TreePath
from backend.decoding.serving.loop import decode
from backend.decoding.serving.request import PARTS, DecodeStep
from backend.decoding.target_model import TargetModel
from backend.models.kv_cache import greedy
from backend.reporter import Reporter, stop_if_asked


class PlainDecoder(ABC):
    """Another program, which decodes greedily and drafts nothing."""

    device = torch.device("cpu")
    proposer: Proposer = NoDraft()

    @abstractmethod
    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """The tokens after a prompt, without end."""

    def decode(
        self, prompt: Sequence[int], limit: int, ends: Collection[int]
    ) -> Iterator[DecodeStep]:
        """Generate up to `limit` tokens after `prompt`; stop after a token of `ends`."""
        clock, path = LapTimer(self.device), list[int]()
        for token in islice(self.tokens(prompt), limit):
            seconds = dict.fromkeys(PARTS, 0.0) | {"verify": clock.lap()}
            yield DecodeStep([token], [0], path, NO_TREE, [token], seconds)
            if token in ends:
                return
            path = [0]
            clock.lap()


class TransformersDecoder(PlainDecoder):
    """A model's own forward pass and cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.device, self._model = model.device, model

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        return greedy(self._model, prompt)


class LlamaCppDecoder(PlainDecoder):
    """A GGUF file decoded by llama.cpp, with room for the longest prompt and its response."""

    def __init__(self, file: Path, capacity: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        threads = torch.get_num_threads()
        with quiet():
            self._model: Any = llama_cpp.Llama(
                str(file),
                n_ctx=capacity,
                n_batch=min(capacity, 512),
                n_threads=threads,
                n_threads_batch=threads,
                verbose=False,
            )
        self._vocabulary = int(self._model.n_vocab())

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        self._model.reset()
        token = self._next(prompt)
        while True:
            yield token
            token = self._next([token])

    def _next(self, tokens: Sequence[int]) -> int:
        self._model.eval(tokens)
        logits = self._library.llama_get_logits_ith(self._model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


@contextmanager
def quiet() -> Iterator[None]:
    """Without what llama.cpp prints to the error stream."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


VANILLA = "vanilla"


class TargetDecoder:
    """A target model verifies what a proposer drafts; decodes greedily, step by step."""

    def __init__(self, target: TargetModel, proposer: Proposer) -> None:
        self.device, self.proposer, self._target = target.device, proposer, target

    def decode(
        self, prompt: Sequence[int], limit: int, ends: Collection[int]
    ) -> Iterator[DecodeStep]:
        return decode(self._target, self.proposer, prompt, limit, ends)


Decoder: TypeAlias = TargetDecoder | PlainDecoder  # an arm


def decoders_of(target: TargetModel, proposers: Mapping[str, Proposer]) -> dict[str, Decoder]:
    """Name -> decoder, all with the same target model."""
    return {name: TargetDecoder(target, proposer) for name, proposer in proposers.items()}


@dataclass
class TimedAnswer:
    """One arm's answer to one prompt.

    Attributes:
        seconds: of the whole answer, for each round.
        lengths: tokens committed by each verify pass.
        ends: ranks of the guesses each of them found right, the path to the last right node.
        parts: seconds of all passes together in each part of a pass, for each round.
    """

    tokens: list[int]
    seconds: list[float]
    lengths: list[int]
    ends: list[list[int]]
    parts: list[dict[str, float]]


Answers = dict[str, TimedAnswer]  # arm -> its answer to a prompt


def time_decoders(
    arms: Mapping[str, Decoder],
    prompt: Sequence[int],
    limit: int,
    ends: Collection[int],
    rounds: int,
    reporter: Reporter,
    offset: int = 0,
) -> Answers:
    """The answers of all arms to one prompt, of `limit` new tokens at most, in `rounds` after a
    warm-up. `offset` shifts the order of the arms, so that each is first about as often. Raises
    CancelledError: cancellation was requested."""
    names, found = list(arms), Answers()
    for turn in range(rounds + 1):
        shift = (turn + offset) % len(names)
        for name in names[shift:] + names[:shift]:
            stop_if_asked(reporter)
            arm = arms[name]
            clock = LapTimer(arm.device)
            steps = list(arm.decode(prompt, limit, ends))
            seconds, passes = clock.lap(), [step for step in steps if step.path]
            answer = TimedAnswer(
                [token for step in steps for token in step.tokens],
                [seconds],
                [len(step.tokens) for step in passes],
                [[*step.tree.nodes[step.path[-1]]] for step in passes],
                [{part: sum(step.seconds[part] for step in passes) for part in PARTS}],
            )
            if turn == 0:
                found[name] = TimedAnswer(answer.tokens, [], answer.lengths, answer.ends, [])
            else:
                found[name].seconds += answer.seconds
                found[name].parts += answer.parts
    return {name: found[name] for name in names}


def packed(answers: Answers) -> dict[str, object]:
    """Answers as JSON can hold them."""
    return {name: asdict(answer) for name, answer in answers.items()}


def unpacked(stored: Mapping[str, Mapping[str, object]]) -> Answers:
    return {name: TimedAnswer(**fields) for name, fields in stored.items()}  # type: ignore[arg-type]


@dataclass(frozen=True)
class MedianRange:
    """A median over rounds, with the lowest and the highest."""

    value: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "MedianRange":
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class DecoderSummary:
    """Comparison of an arm's answers to all prompts with vanilla's.

    Attributes:
        lengths: accepted length -> verify passes that had it; `accepted`: their mean.
        hits: path of a node -> share of verify passes that found it right.
        parts: mean seconds of a verify pass in each of `PARTS`.
        same: prompts answered with vanilla's very tokens, of `prompts`.
        first_difference: the earliest token that differs; None where none does.
    """

    speed: MedianRange
    speed_up: MedianRange
    accepted: float
    lengths: dict[int, int]
    hits: dict[TreePath, float]
    parts: dict[str, float]
    break_even: float
    same: int
    prompts: int
    first_difference: int | None


def summarize(name: str, answered: Sequence[Answers]) -> DecoderSummary:
    """Compare arm `name` with vanilla over the prompts `answered`."""
    mine, base = [each[name] for each in answered], [each[VANILLA] for each in answered]
    speeds, vanilla = _speeds(mine), _speeds(base)
    lengths = Counter(length for answer in mine for length in answer.lengths)
    passes = sum(lengths.values())
    parts, plain = _parts(mine), _parts(base)
    texts = [(a.tokens, b.tokens) for a, b in zip(mine, base, strict=True)]
    differing = [same_start(a, b) for a, b in texts if a != b]
    # share of passes that found a node right, for every node that was ever right
    ends = [tuple(end) for answer in mine for end in answer.ends]
    counts = Counter(end[:depth] for end in ends for depth in range(1, len(end) + 1))
    return DecoderSummary(
        MedianRange.of(speeds),
        MedianRange.of([one / other for one, other in zip(speeds, vanilla, strict=True)]),
        sum(n * count for n, count in lengths.items()) / passes if passes else 1.0,
        dict(sorted(lengths.items())),
        {path: count / len(ends) for path, count in sorted(counts.items())},
        parts,
        sum(parts.values()) / sum(plain.values()) if sum(plain.values()) else 1.0,
        len(texts) - len(differing),
        len(texts),
        min(differing, default=None),
    )


def _speeds(answers: Sequence[TimedAnswer]) -> list[float]:
    """Tokens per second of each round, mean over prompts."""
    rounds = range(len(answers[0].seconds))
    return [mean(len(a.tokens) / a.seconds[n] for a in answers) for n in rounds]


def _parts(answers: Sequence[TimedAnswer]) -> dict[str, float]:
    """Mean seconds of a verify pass in each part: the median round of each answer counts."""
    passes = max(1, sum(len(answer.lengths) for answer in answers))
    return {
        part: sum(median(taken[part] for taken in answer.parts) for answer in answers) / passes
        for part in PARTS
    }


def same_start(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two texts, in tokens."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
