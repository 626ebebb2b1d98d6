"""Benchmark of decoders: order of the arms, counts, and definitions of the results."""

import json
from dataclasses import dataclass

import pytest

from backend.decoding.benchmark import (
    VANILLA,
    MedianRange,
    TimedAnswer,
    decoders_of,
    packed,
    summarize,
    time_decoders,
    unpacked,
)
from backend.decoding.draft_tree import NoDraft, PromptLookup, chain
from backend.drafters.generate import TreeProposer
from backend.errors import CancelledError
from backend.reporter import SilentReporter
from tests.decoding.test_engine import plain
from tests.drafters.toys import END, base, drafter_of, toy_prompts
from tests.toy_layers import Recorder


@dataclass
class StartRecorder(NoDraft):
    """Proposer without drafts that records its starts."""

    name: str
    order: list[str]

    def start(self, first: int, capacity: int) -> None:
        self.order.append(self.name)


def test_all_arms_give_equal_answers_and_are_timed_each_round() -> None:
    target, prompt = base(), toy_prompts()[2]
    drafter = drafter_of(target, scale=0.2, heads=2)
    arms = {
        VANILLA: NoDraft(),
        "lookup": PromptLookup(),
        "own": TreeProposer(drafter, target, chain(2)),
    }
    result = time_decoders(decoders_of(target, arms), prompt, 24, [END], 2, SilentReporter())
    expected = plain(target, prompt, 24, [END])
    for answer in result.values():
        assert answer.tokens == expected
        assert 1 + sum(answer.lengths) == len(expected)  # the first token is the prefill's
        assert [len(end) + 1 for end in answer.ends[:-1]] == answer.lengths[:-1]  # the last is cut
        assert len(answer.seconds) == len(answer.parts) == 2
        assert all(
            sum(parts.values()) < s for parts, s in zip(answer.parts, answer.seconds, strict=True)
        )
    assert set(result[VANILLA].lengths) == {1}
    assert unpacked(json.loads(json.dumps(packed(result)))) == result


def test_every_arm_comes_first_in_turn() -> None:
    order: list[str] = []
    arms = {name: StartRecorder(name, order) for name in (VANILLA, "a", "b")}
    time_decoders(decoders_of(base(), arms), [5, 6], 2, [], 2, SilentReporter(), offset=1)
    assert order == ["a", "b", VANILLA, "b", VANILLA, "a", VANILLA, "a", "b"]


def test_cancellation_is_checked_between_answers() -> None:
    asked = Recorder(stop=lambda _: True)
    with pytest.raises(CancelledError):
        time_decoders(decoders_of(base(), {VANILLA: NoDraft()}), [5, 6], 2, [], 1, asked)


def timed(
    tokens: list[int],
    seconds: list[float],
    lengths: list[int],
    verify: float,
    ends: list[list[int]] | None = None,
) -> TimedAnswer:
    parts = {"draft": 0.25, "verify": verify, "accept": 0.0, "cache": 0.0}
    return TimedAnswer(
        tokens, seconds, lengths, ends or [[]] * len(lengths), [parts] * len(seconds)
    )


def test_results_follow_their_definitions() -> None:
    vanilla = timed([1, 2, 3, 4, 5], [2.0, 5.0, 2.5], [1, 1, 1, 1], 3.75)
    mine = timed([1, 2, 3, 4, 5], [1.0, 2.5, 5.0], [3, 1], 3.75, [[0, 2], []])
    other = timed([1, 2, 3, 9, 5], [1.0, 2.5, 5.0], [2, 2], 3.75, [[0], [1]])
    result = summarize(
        "mine", [{VANILLA: vanilla, "mine": mine}, {VANILLA: vanilla, "mine": other}]
    )
    assert result.speed == MedianRange(2.0, 1.0, 5.0)
    assert result.speed_up == MedianRange(2.0, 0.5, 2.0)
    assert result.accepted == 2.0 and result.lengths == {1: 1, 2: 2, 3: 1}
    assert result.hits == {(0,): 0.5, (0, 2): 0.25, (1,): 0.25}
    assert result.parts["verify"] == pytest.approx(3.75 / 2)
    assert result.break_even == pytest.approx(2.0)  # 4.0 s over 2 passes, against 4.0 s over 4
    assert (result.same, result.prompts, result.first_difference) == (1, 2, 3)
    itself = summarize(VANILLA, [{VANILLA: vanilla}])
    assert (itself.speed_up.value, itself.accepted, itself.break_even) == (1.0, 1.0, 1.0)
    short = timed([1, 2], [1.0], [1], 1.0)  # a text that ends early differs where it ends
    assert summarize("a", [{VANILLA: vanilla, "a": short}]).first_difference == 2
