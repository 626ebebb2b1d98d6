"""Decoding loop: greedy text equals that of plain `generate`, whatever is drafted. Benchmark of
decoders: order of the arms, counts, and definitions of the results."""

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import cycle, product

import pytest
import torch
from torch import Tensor

from backend.decoding.acceptance import Sampling
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
from backend.decoding.draft_tree import (
    DraftTokens,
    DynamicTree,
    NoDraft,
    PromptLookup,
    PromptLookupFirst,
    Proposer,
    Tree,
    chain,
)
from backend.decoding.limits import LOOKUP_HEAD
from backend.decoding.serving.loop import decode
from backend.decoding.serving.request import DecodeStep
from backend.decoding.target_model import TargetModel
from backend.drafters.amphista import AmphistaDrafter
from backend.drafters.config import ARMS
from backend.drafters.generate import TreeProposer
from backend.errors import CancelledError, ConfigError
from backend.reporter import SilentReporter
from tests.conftest import ALL
from tests.drafters.toys import (
    ARCHITECTURES,
    END,
    base,
    drafter_of,
    mean_accepted,
    random_ids,
    toy_prompts,
)
from tests.toy_layers import Recorder

TREES = {
    16: Tree([(a,) for a in range(8)] + [(a, 0) for a in range(5)] + [(0, 1), (1, 1)]),
    64: Tree([(a,) for a in range(10)] + [(a, b) for a in range(6) for b in range(9)][:53]),
}


def plain(
    target: TargetModel, prompt: Sequence[int], limit: int, ends: Sequence[int], **more
) -> list:
    """Return the greedy text of transformers."""
    ids = torch.tensor([prompt])
    stop = {"eos_token_id": list(ends), "pad_token_id": 0} if ends else {"eos_token_id": None}
    options = {"do_sample": False, "max_new_tokens": limit, "use_cache": True, **stop, **more}
    mask = torch.ones_like(ids)
    return target.model.generate(ids, attention_mask=mask, **options)[0, len(prompt) :].tolist()


def ours(
    target: TargetModel,
    proposer: Proposer,
    prompt: Sequence[int],
    limit: int,
    ends: Sequence[int] = (),
    sampling: Sampling | None = None,
) -> tuple[list[int], list[DecodeStep]]:
    steps = list(decode(target, proposer, prompt, limit, ends, sampling))
    return [token for step in steps for token in step.tokens], steps


# identity -----------------------------------------------------------------------------------------


@lru_cache
def noisy(arm: str) -> AmphistaDrafter:
    """Return a bad drafter with two heads for the toy."""
    return drafter_of(base(), scale=0.3, heads=2, **ARMS[arm])


@lru_cache
def generated(prompt: tuple[int, ...], limit: int) -> list[int]:
    """Return the text of transformers with the toy."""
    return plain(base(), prompt, limit, [END])


@pytest.mark.parametrize(
    ("arm", "nodes"), [*product(ARMS, TREES)] if ALL else [*zip(ARMS, cycle(TREES), strict=False)]
)
def test_every_arm_writes_what_generate_writes(arm: str, nodes: int) -> None:
    for prompt, limit in ((toy_prompts()[0], 41), (toy_prompts()[1][:1], 24)):
        proposer = TreeProposer(noisy(arm), base(), TREES[nodes])
        result, _ = ours(base(), proposer, prompt, limit, [END])
        assert result == generated(prompt, limit)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_writes_what_generate_writes(name: str) -> None:
    target = base(name)
    tree = Tree([*((a,) for a in range(3)), *((0,) * n for n in range(2, 6))])
    drafter = drafter_of(target, scale=0.3, heads=5)
    prompt = random_ids(target, 7).tolist()
    result, _ = ours(target, TreeProposer(drafter, target, tree), prompt, 40)
    assert result == plain(target, prompt, 40, [])


@pytest.mark.parametrize("architecture", ["amphista", "eagle"])
@pytest.mark.parametrize(("name", "length"), [("grouped", 300), ("gpt2", 1024 - 38)])
def test_long_prompts_up_to_the_last_position(name: str, length: int, architecture: str) -> None:
    """GPT-2 has learned positions, which end with the context."""
    target = base(name)
    drafter = drafter_of(target, scale=0.3, heads=2, architecture=architecture)
    prompt = random_ids(target, length).tolist()
    assert name == "grouped" or target.context == length + 38
    for tree in (TREES[16], DynamicTree(6, 0.0)):
        result, _ = ours(target, TreeProposer(drafter, target, tree), prompt, 38)
        assert result == plain(target, prompt, 38, [])


def test_a_drafter_drafts_where_lookup_finds_nothing() -> None:
    """The text is the target's, and the heads draft as if they were called at every step."""
    target, limit = base("grouped"), 60
    drafted = TreeProposer(drafter_of(target, scale=0.3, heads=2), target, TREES[16])
    right, asked = 0, 0
    for prompt in (random_ids(target, size).tolist() for size in (5, 40)):
        expected = plain(target, prompt, limit, [])
        result, steps = ours(target, PromptLookupFirst(drafted), prompt, limit)
        assert result == expected
        place = len(steps[0].tokens)
        for step in steps[1:]:
            if step.tree is drafted.policy.tree({}):
                again = ours(target, drafted, [*prompt, *result[: place - 1]], 2)[1][1]
                assert again.guesses == step.guesses
                asked += 1
            else:
                assert {*step.heads} <= {LOOKUP_HEAD, 0}
                right += step.heads.count(LOOKUP_HEAD)
            place += len(step.tokens)
    assert right > 5 and asked > 5


# oracles ------------------------------------------------------------------------------------------


class ShiftedProposer:
    """Proposer that drafts a given text with `shift` added to every token; 0 is always right."""

    def __init__(self, text: Sequence[int], prompt: int, depth: int, shift: int, size: int) -> None:
        self.text, self.depth, self.shift, self.size = list(text), depth, shift, size
        self.nodes, self.prompt = depth + 1, prompt

    def start(self, first: int, capacity: int) -> None:
        self.known = 1

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        self.known += len(tokens)
        assert len(hidden) == len(tokens)
        place = self.known - self.prompt
        result = [(t + self.shift) % self.size for t in self.text[place : place + self.depth]]
        return DraftTokens(result, chain(len(result)))


@pytest.mark.parametrize(("depth", "shift"), [(1, 0), (3, 0), (5, 0), (3, 1)])
def test_a_perfect_drafter_is_fully_accepted_and_an_adversarial_one_changes_no_token(
    depth: int, shift: int
) -> None:
    target, prompt = base(), toy_prompts()[3]
    text = plain(target, prompt, 61, [])
    knowing = ShiftedProposer(text, len(prompt), depth, shift, target.vocabulary)
    result, steps = ours(target, knowing, prompt, 1 + 5 * (depth + 1))
    assert result == text[: len(result)]
    assert mean_accepted(steps) == (1 if shift else depth + 1)
    assert steps[1].heads == ([0] if shift else [*range(1, depth + 1), 0])
    wrong = [(token + 1) % target.vocabulary for token in text[1 : depth + 1]]
    assert steps[1].rejected == (wrong if shift else [])


@pytest.mark.parametrize(
    ("limit", "at"), [*((40, at) for at in range(1, 8)), *((limit, -1) for limit in (1, 2, 7, 13))]
)
def test_a_text_ends_at_an_end_or_the_limit_inside_an_accepted_path(limit: int, at: int) -> None:
    target, prompt = base(), toy_prompts()[4]
    text = plain(target, prompt, 40, [])
    ends = [text[at]] if at > 0 else []
    knowing = ShiftedProposer(text, len(prompt), 4, 0, target.vocabulary)
    result, steps = ours(target, knowing, prompt, limit, ends)
    assert result == plain(target, prompt, limit, ends)
    assert sum(len(step.heads) for step in steps) == len(result)


# cache hygiene ------------------------------------------------------------------------------------


def test_the_caches_are_correct_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    target, prompt = base(), toy_prompts()[5]
    caches = []
    created = target.new_cache
    monkeypatch.setattr(
        target, "new_cache", lambda *args: caches.append(created(*args)) or caches[-1]
    )
    drafter = drafter_of(target, scale=0.1, heads=2)
    proposer = TreeProposer(drafter, target, TREES[16])
    committed = len(prompt)
    for step in decode(target, proposer, prompt, 30):
        committed += len(step.tokens)
        if committed < len(prompt) + 30:  # the last step may have been cut
            assert caches[0].length == committed - 1  # the root is not read yet
        if step.path:
            read = caches[0].length - len(step.path)
            assert [c.length for c in proposer._caches] == [read, read]  # accepted tokens only


def test_two_texts_from_one_object_agree() -> None:
    target, prompt = base(), toy_prompts()[6]
    drafter = drafter_of(target, scale=0.3, heads=2)
    for proposer in (
        TreeProposer(drafter, target, TREES[16]),
        PromptLookup(),
        PromptLookupFirst(TreeProposer(drafter, target, TREES[16])),
    ):
        first, _ = ours(target, proposer, prompt, 30)
        ours(target, proposer, toy_prompts()[7], 11)
        assert ours(target, proposer, prompt, 30)[0] == first


# refusals -----------------------------------------------------------------------------------------


def test_trees_beyond_the_drafter_are_refused() -> None:
    target = base()
    drafter = drafter_of(target, heads=2)
    for tree in (chain(3), Tree([(target.vocabulary,)])):
        with pytest.raises(ConfigError, match="does not fit the drafter"):
            TreeProposer(drafter, target, tree)


class StartRecorder(NoDraft):
    """Proposer without drafts that records its starts."""

    nodes = 2

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

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


def test_a_text_that_ends_early_differs_where_it_ends() -> None:
    short, long = timed([1, 2], [1.0], [1], 1.0), timed([1, 2, 3], [1.0], [1, 1], 1.0)
    assert summarize("a", [{VANILLA: long, "a": short}]).first_difference == 2
