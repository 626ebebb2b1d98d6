"""Where the time of a draft goes."""

from __future__ import annotations

import pytest
import torch

from backend.decoding.draft_tree import Tree
from backend.drafters.config import ARMS
from backend.drafters.draft_time import LM_HEAD, REST, time_parts
from backend.drafters.tree_proposer import TreeProposer
from tests.drafters.toys import base, drafter_of, random_ids

TREE = Tree([(0,), (1,), (0, 0), (0, 0, 0)])
ALWAYS = {LM_HEAD, REST, "norm"}


@pytest.mark.parametrize(
    ("arm", "parts"),
    [
        ("Amphista", {"fusions", "layers", "heads", "encoder"}),
        ("Medusa", {"heads"}),
        ("Hydra", {"fusions", "layers", "heads"}),
        ("EAGLE", {"fusions", "layers"}),
    ],
)
def test_every_part_that_is_called_is_timed(arm: str, parts: set[str]) -> None:
    target, ids = base("grouped"), random_ids(base("grouped"), 12)
    proposer = TreeProposer(drafter_of(target, **ARMS[arm]), target, TREE)
    hidden, tokens = target.hidden(ids[None])[0, :-1], ids[1:].tolist()
    found = time_parts(proposer, hidden, tokens, repeats=3)
    assert found.keys() == ALWAYS | parts
    assert all(seconds > 0 for seconds in found.values())
    assert "head" not in vars(proposer.drafter)  # as it was
    assert not any(m._forward_hooks for m in proposer.drafter.modules())


def test_states_up_to_the_end_of_the_context_leave_room_for_drafts() -> None:
    target = base("gpt2")
    proposer = TreeProposer(drafter_of(target, **ARMS["Amphista"]), target, TREE)
    states = torch.randn(target.context, target.width)
    assert time_parts(proposer, states, [1] * len(states), repeats=3)
