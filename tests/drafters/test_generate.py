"""Python API, streamed text, and the choice of the tree size; replays of cached answers equal
decoding, and dynamic trees lose nothing."""

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from transformers import PreTrainedModel

from backend.decoding.acceptance import Sampling
from backend.decoding.cost_model import SIZES, CostModel, measure_costs
from backend.decoding.draft_tree import (
    DynamicTree,
    NoDraft,
    PromptLookup,
    PromptLookupFirst,
    Proposer,
    Tree,
    best_tree,
)
from backend.decoding.limits import LOOKUP_HEAD
from backend.decoding.serving.loop import decode
from backend.decoding.serving.sequence import Detokenizer
from backend.decoding.target_model import TargetModel
from backend.drafters.checkpoint import Amphista, BaseFingerprint, pack
from backend.drafters.exact_walk import Walk, walk_answers
from backend.drafters.generate import TreeProposer, generate, make_proposer
from backend.drafters.training.hidden_state_cache import CachedSequence
from backend.drafters.training.prompts import write_answers
from backend.errors import ConfigError
from backend.models.loading import load
from backend.reporter import SilentReporter
from tests.decoding.test_engine import plain
from tests.drafters.toys import ARCHITECTURES, END, base, built, drafter_of, random_ids, toy_prompts
from tests.refusals import refusal

GROWTH = [((0,), 0.6), ((0, 0), 0.3), ((1,), 0.2), ((0, 0, 0), 0.1), ((2,), 0.1)]


def saved(**fields: object) -> Amphista:
    drafter = drafter_of(base(), scale=0.2, **fields)
    return pack(drafter, BaseFingerprint.of(base(), "toy"), GROWTH, {}, {}, 40)


def test_with_and_without_a_drafter_the_text_is_the_same() -> None:
    model, prompt = base().model, toy_prompts()[0]
    expected = plain(base(), prompt, 30, [END])
    for drafter, nodes, lookup in (
        (None, 0, False),
        (saved(), 4, False),
        (saved(), 0, False),
        (PromptLookup(), 0, False),
        (saved(), 4, True),
        (saved(), 1, True),
    ):
        result = list(generate(model, drafter, prompt, 30, nodes=nodes, lookup=lookup))
        assert [token.id for token in result] == expected
        assert result[0].head == result[0].step == 0  # token of the prefill
        assert all(LOOKUP_HEAD <= token.head <= 4 for token in result)
        assert [token.step for token in result] == sorted(token.step for token in result)


def test_lookup_keeps_the_text_and_marks_its_tokens() -> None:
    """With a drafter, without one, and with a tree of one node."""
    target = base("grouped")
    prompt = random_ids(target, 9).tolist()
    for sampling in (Sampling(), Sampling(temperature=0.05, seed=4)):
        expected = [token.id for token in generate(target, None, prompt, 60, sampling, [])]
        for drafter in (None, TreeProposer(drafter_of(target, heads=2), target, Tree([(0,)]))):
            result = list(generate(target, drafter, prompt, 60, sampling, [], lookup=True))
            assert [token.id for token in result] == expected
            assert any(token.head == LOOKUP_HEAD for token in result)
            assert len({token.step for token in result}) < 60


def test_a_prompt_may_be_a_tensor_of_one_row() -> None:
    prompt = torch.tensor(toy_prompts()[0])
    texts = [
        [token.id for token in generate(base(), None, given, 9)]
        for given in (prompt, prompt[None], prompt.tolist())
    ]
    assert texts[0] == texts[1] == texts[2]


def test_more_than_one_prompt_is_refused() -> None:
    with refusal("prompt", "2 prompts", "once per prompt", error=ConfigError):
        list(generate(base(), None, torch.ones(2, 4, dtype=torch.long)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_repeat_ngram_size", 3),
        ("bad_words_ids", [[5]]),
        ("suppress_tokens", [7]),
        ("min_new_tokens", 4),
        ("exponential_decay_length_penalty", (5, 1.1)),
        ("num_beams", 4),
        ("stop_strings", ["The end"]),
    ],
)
def test_unsupported_generation_settings_are_refused(name: str, value: object) -> None:
    model = built(ARCHITECTURES["grouped"])
    setattr(model.generation_config, name, value)
    with refusal("model", name, error=ConfigError):
        list(generate(model, None, [5, 6], 4))


def test_the_models_own_repetition_penalty_is_kept() -> None:
    """As in transformers, a penalty in the generation config applies."""
    model, prompt = load("toy").model, toy_prompts()[0]
    model.generation_config.repetition_penalty = 1.4
    target = TargetModel(model)
    expected = plain(target, prompt, 30, [END], repetition_penalty=1.4)
    result = [token.id for token in generate(target, saved(), prompt, 30, nodes=4)]
    assert result == expected != plain(base(), prompt, 30, [END])
    bare = generate(target, None, prompt, 30, Sampling())
    assert [token.id for token in bare] == plain(base(), prompt, 30, [END])


# streamed text ------------------------------------------------------------------------------------


def parts(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], Detokenizer]:
    """Return the text released after each token, and at the end."""
    tokenizer = load("toy").tokenizer
    told = Detokenizer(tokenizer, stops)
    result = [told.add(token) for token in tokenizer(text, add_special_tokens=False).input_ids]
    return [*result, told.flush()], told


@pytest.mark.parametrize("text", ["A cat sat.", "Grüße, 猫 and 🐈!", " spaces  inside ", "é"])
def test_the_streamed_parts_add_up_to_the_text(text: str) -> None:
    result, _ = parts(text)
    assert "".join(result) == text
    assert not any("\ufffd" in part for part in result)  # no incomplete character is released


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_certain() -> None:
    result, told = parts("a cat sat on them", ("sat on the mat",))
    assert "".join(result) == "a cat sat on them" and not told.stopped
    shown = ""
    for part in result[:-1]:
        shown += part
        assert not shown.endswith(" sat on")


# choice of the tree -------------------------------------------------------------------------------


def test_the_tree_is_large_if_nodes_are_cheap() -> None:
    flat = CostModel({1: 1.0, 2: 1.0, 8: 1.0}, draft=0.1)
    steep = CostModel({1: 1.0, 2: 1.6, 8: 6.4}, draft=0.1)
    assert flat.best_nodes(GROWTH) == 6  # all nodes of the growth
    assert steep.best_nodes(GROWTH) == 1  # no drafts: plain decoding is faster
    assert steep.best_nodes(GROWTH, least=2) == 2
    assert (flat.break_even(1), flat.break_even(2)) == (1.0, 1.1)
    assert flat.speed_up(GROWTH, 3) == pytest.approx(1.9 / 1.1)
    assert steep.break_even(2) == pytest.approx(1.7)


def test_costs_are_measured_for_every_size_and_leave_no_trace() -> None:
    proposer = TreeProposer(saved().bind(base()), base(), best_tree(GROWTH, 3))
    costs = measure_costs(base(), proposer, sizes=(1, 2, 6), repeats=2)
    assert list(costs.verify) == [1, 2, 6]
    assert all(seconds > 0 for seconds in (*costs.verify.values(), costs.draft))
    assert measure_costs(base(), None, sizes=(1, 2), repeats=1).draft == 0


def test_costs_are_measured_with_a_short_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base(), "context", 24)
    assert list(measure_costs(base(), repeats=1).verify) == [n for n in SIZES if n < 12]


def test_the_proposer_of_a_drafter() -> None:
    for drafter, nodes in ((None, 0), (saved(), 1)):  # a tree of one node has no drafts
        assert isinstance(make_proposer(base(), drafter, nodes), NoDraft)
    chosen = make_proposer(base(), saved(), nodes=3)
    assert isinstance(chosen, TreeProposer)
    assert chosen.policy.tree({}).paths == Tree([(0,), (0, 0)]).paths


def test_a_model_without_end_tokens_generates_to_the_limit() -> None:
    model: PreTrainedModel = built(ARCHITECTURES["grouped"])
    model.generation_config.eos_token_id = None
    assert len(list(generate(model, None, [5, 6], 17))) == 17


LIMIT = 40
TREE = Tree([(0,), (1,), (0, 0), (1, 0), (0, 0, 0)])


@lru_cache
def drafted(architecture: str) -> TreeProposer:
    drafter = drafter_of(base(), scale=0.05, heads=3, architecture=architecture)
    return TreeProposer(drafter, base(), TREE)


@lru_cache
def confident(architecture: str, least: float = 0.05) -> TreeProposer:
    return TreeProposer(drafted(architecture).drafter, base(), DynamicTree(6, least))


PROPOSERS: dict[str, Callable[[], Proposer]] = {
    "none": NoDraft,
    "lookup": PromptLookup,
    "parallel": lambda: drafted("amphista"),
    "sequential": lambda: drafted("eagle"),
    "parallel, confident": lambda: confident("amphista"),
    "sequential, confident": lambda: confident("eagle"),
    "lookup first": lambda: PromptLookupFirst(drafted("amphista")),
}


@lru_cache
def answers() -> list[CachedSequence]:
    """Return the greedy answers of the toy to some prompts."""
    prompts = [list(prompt) for prompt in toy_prompts(2)]
    created = write_answers(base(), prompts, LIMIT, (), 0.0, 0, SilentReporter())
    return [CachedSequence(start=len(p), **each) for p, each in zip(prompts, created, strict=True)]


@pytest.mark.parametrize("name", PROPOSERS)
def test_a_replay_equals_decoding(name: str) -> None:
    proposer, tokens, nodes = PROPOSERS[name](), list[int](), list[int]()
    for answer in answers():
        prompt = answer.ids[: answer.start].tolist()
        steps = [*decode(base(), proposer, prompt, LIMIT)]
        assert prompt + [t for step in steps for t in step.tokens] == answer.ids.tolist()
        tokens += [len(step.tokens) for step in steps if step.path]
        nodes += [len(step.tree) for step in steps if step.path]
    walk = walk_answers(proposer, answers())
    if "confident" not in name:  # cached states in 16 bits may move a path over the threshold
        assert (walk.accepted, walk.nodes) == (tokens, nodes)
    assert walk.accepted_length == pytest.approx(sum(tokens) / len(tokens), rel=0.03)
    assert (walk.accepted_length > 1) == (name != "none")


def test_the_speed_up_counts_nodes_and_drafts() -> None:
    costs = CostModel({1: 0.1, 2: 0.1, 4: 0.2}, draft=0.05)
    walk = Walk(accepted=[2, 1, 3], nodes=[4, 2, 4], drafted=[True, False, True])
    assert walk.speed_up(costs) == pytest.approx(6 / (2.5 + 1 + 2.5))


@pytest.mark.parametrize("architecture", ["amphista", "eagle"])
@torch.inference_mode()
def test_a_dynamic_tree_has_the_likely_paths(architecture: str) -> None:
    sizes = []
    for least in (0.0, 0.1, 1.1):
        result = walk_answers(confident(architecture, least), answers()).nodes
        assert max(result) <= 6
        sizes.append(sum(result) / len(result))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 6 and sizes[-1] == 1  # no path is that likely, so nothing is drafted


def test_the_likeliest_paths_are_closed_under_prefixes() -> None:
    chances = {(): 1.0, (0,): 0.5, (1,): 0.5, (0, 0): 0.5, (1, 0): 0.2, (0, 0, 0): 0.01}
    policy = DynamicTree(nodes=4, least=0.1)
    assert policy.tree(chances).paths == [(0,), (1,), (0, 0)]
    assert policy.inner(chances, 2) == [(0, 0)] and policy.inner(chances, 3) == []
    assert DynamicTree(nodes=9, least=0.1).tree(chances).paths[-1] == (1, 0)
