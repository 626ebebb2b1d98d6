"""Replays of cached answers equal decoding; dynamic trees lose nothing."""

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch

from backend.decoding.cost_model import CostModel
from backend.decoding.draft_tree import (
    DynamicTree,
    NoDraft,
    PromptLookup,
    PromptLookupFirst,
    Proposer,
    Tree,
)
from backend.decoding.serving.loop import decode
from backend.drafters.exact_walk import Walk, walk_answers
from backend.drafters.generate import TreeProposer
from backend.drafters.training.hidden_state_cache import CachedSequence
from backend.drafters.training.prompts import write_answers
from backend.reporter import SilentReporter
from tests.drafters.toys import base, drafter_of, toy_prompts

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
    prompts = [list(prompt) for prompt in toy_prompts(4)]
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
    for least in (0.0, 0.05, 0.3, 1.1):
        proposer = confident(architecture, least)
        result = walk_answers(proposer, answers()).nodes
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
