"""Measured decoding speed of several decoders (arms) on the same prompts.

For every prompt all arms answer in turn, in several rounds and each round in another order, so that
a burst of load from another program does not hit one arm alone. A warm-up round is not counted.

    tokens/s of an arm and round      mean over prompts of new tokens / seconds of the whole answer
    speed-up                          tokens/s relative to the first arm, vanilla, in the same round
    break-even                        seconds of a pass relative to a vanilla pass: the accepted
                                      length at which an arm is as fast as vanilla

The seconds of an answer include the prefill, because a reader waits for it (Spec-Bench's
convention). Medians and ranges are over rounds. Accepted lengths and texts are the same in every
round, because decoding is greedy. Two other decoders serve as references: transformers, and
llama.cpp, which is optional and should be built for this processor (CMAKE_ARGS=-DGGML_NATIVE=ON).
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
    """Greedy decoder of another library, without drafts."""

    device = torch.device("cpu")
    proposer: Proposer = NoDraft()

    @abstractmethod
    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """Yield the tokens after a prompt, endlessly."""

    def decode(
        self, prompt: Sequence[int], limit: int, ends: Collection[int]
    ) -> Iterator[DecodeStep]:
        """Generate up to `limit` tokens after `prompt`. Stop after a token of `ends`."""
        clock, path = LapTimer(self.device), list[int]()
        for token in islice(self.tokens(prompt), limit):
            seconds = dict.fromkeys(PARTS, 0.0) | {"verify": clock.lap()}
            yield DecodeStep([token], [0], path, NO_TREE, [token], seconds)
            if token in ends:
                return
            path = [0]
            clock.lap()


class TransformersDecoder(PlainDecoder):
    """Decoder that uses the model's own forward pass and cache in transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.device, self._model = model.device, model

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        return greedy(self._model, prompt)


class LlamaCppDecoder(PlainDecoder):
    """Decoder that runs a GGUF file in llama.cpp. `capacity`: maximum tokens of prompt and
    answer."""

    def __init__(self, file: Path, capacity: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        threads = torch.get_num_threads()
        with silenced_stderr():
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
def silenced_stderr() -> Iterator[None]:
    """Discard output to the error stream, including that of C++ libraries such as llama.cpp."""
    stderr_copy = os.dup(2)
    with Path(os.devnull).open("w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)


VANILLA = "vanilla"


class TargetDecoder:
    """Greedy decoder in which a target model verifies the drafts of a proposer."""

    def __init__(self, target: TargetModel, proposer: Proposer) -> None:
        self.device, self.proposer, self._target = target.device, proposer, target

    def decode(
        self, prompt: Sequence[int], limit: int, ends: Collection[int]
    ) -> Iterator[DecodeStep]:
        """Generate up to `limit` tokens after `prompt`. Stop after a token of `ends`."""
        return decode(self._target, self.proposer, prompt, limit, ends)


Decoder: TypeAlias = TargetDecoder | PlainDecoder  # an arm of the comparison


def decoders_of(target: TargetModel, proposers: Mapping[str, Proposer]) -> dict[str, Decoder]:
    """Map names to decoders with the same target model, one for each proposer."""
    return {name: TargetDecoder(target, proposer) for name, proposer in proposers.items()}


@dataclass
class TimedAnswer:
    """Answer of one arm to one prompt.

    Attributes:
        seconds: seconds of the whole answer, for each round.
        lengths: tokens committed by each verification pass.
        ends: path (ranks) to the last accepted node, for each verification pass.
        parts: seconds of all passes in each part of a pass, for each round.
    """

    tokens: list[int]
    seconds: list[float]
    lengths: list[int]
    ends: list[list[int]]
    parts: list[dict[str, float]]


Answers = dict[str, TimedAnswer]  # arm -> answer to one prompt


def time_decoders(
    arms: Mapping[str, Decoder],
    prompt: Sequence[int],
    limit: int,
    ends: Collection[int],
    rounds: int,
    reporter: Reporter,
    offset: int = 0,
) -> Answers:
    """Time the answers of all arms to one prompt, in `rounds` rounds after a warm-up.

    Args:
        limit: maximum number of new tokens.
        ends: token ids that end an answer.
        offset: shift in the order of the arms, so that each comes first about equally often.

    Raises:
        CancelledError: cancellation was requested.
    """
    names, answers = list(arms), Answers()
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
                answers[name] = TimedAnswer(answer.tokens, [], answer.lengths, answer.ends, [])
            else:
                answers[name].seconds += answer.seconds
                answers[name].parts += answer.parts
    return {name: answers[name] for name in names}


def packed(answers: Answers) -> dict[str, object]:
    """Convert answers to JSON data."""
    return {name: asdict(answer) for name, answer in answers.items()}


def unpacked(data: Mapping[str, Mapping[str, object]]) -> Answers:
    """Convert JSON data to answers."""
    return {name: TimedAnswer(**fields) for name, fields in data.items()}  # type: ignore[arg-type]


@dataclass(frozen=True)
class MedianRange:
    """Median over rounds, with the lowest and the highest value."""

    value: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "MedianRange":
        """Summarize values."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class DecoderSummary:
    """Comparison of an arm's answers to all prompts with those of vanilla decoding.

    Attributes:
        speed: tokens per second.
        speed_up: speed relative to vanilla.
        accepted: mean accepted length.
        lengths: accepted length -> number of verification passes.
        hits: path of a node -> share of verification passes that accepted it.
        parts: mean seconds of a verification pass in each of `PARTS`.
        break_even: accepted length at which the arm is as fast as vanilla.
        same: number of prompts answered with the same tokens as vanilla.
        prompts: number of prompts.
        first_difference: index of the earliest token that differs; None if none does.
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


def summarize(name: str, answers: Sequence[Answers]) -> DecoderSummary:
    """Compare arm `name` with vanilla. `answers` has one entry for each prompt."""
    arm, vanilla = [by_arm[name] for by_arm in answers], [by_arm[VANILLA] for by_arm in answers]
    speeds, vanilla_speeds = _speeds(arm), _speeds(vanilla)
    lengths = Counter(length for answer in arm for length in answer.lengths)
    passes = sum(lengths.values())
    parts, vanilla_parts = _parts(arm), _parts(vanilla)
    vanilla_seconds = sum(vanilla_parts.values())
    texts = [(a.tokens, b.tokens) for a, b in zip(arm, vanilla, strict=True)]
    differences = [same_start(a, b) for a, b in texts if a != b]
    ends = [tuple(end) for answer in arm for end in answer.ends]
    hits = Counter(end[:depth] for end in ends for depth in range(1, len(end) + 1))
    return DecoderSummary(
        MedianRange.of(speeds),
        MedianRange.of([speed / base for speed, base in zip(speeds, vanilla_speeds, strict=True)]),
        sum(n * count for n, count in lengths.items()) / passes if passes else 1.0,
        dict(sorted(lengths.items())),
        {path: count / len(ends) for path, count in sorted(hits.items())},
        parts,
        sum(parts.values()) / vanilla_seconds if vanilla_seconds else 1.0,
        len(texts) - len(differences),
        len(texts),
        min(differences, default=None),
    )


def _speeds(answers: Sequence[TimedAnswer]) -> list[float]:
    """Return the tokens per second of each round, averaged over prompts."""
    rounds = range(len(answers[0].seconds))
    return [mean(len(a.tokens) / a.seconds[n] for a in answers) for n in rounds]


def _parts(answers: Sequence[TimedAnswer]) -> dict[str, float]:
    """Return the mean seconds of a verification pass in each part. Uses the median round of each
    answer."""
    passes = max(1, sum(len(answer.lengths) for answer in answers))
    return {
        part: sum(median(seconds[part] for seconds in answer.parts) for answer in answers) / passes
        for part in PARTS
    }


def same_start(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two texts, in tokens."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
