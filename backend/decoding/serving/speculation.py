"""Drafts of one sequence, and whether they pay beside the others in a pass.

A pass of R rows for b sequences takes t(R) and writes b tokens. A draft that adds n rows, takes d
to make and is right in g tokens raises the tokens a second of all where (ours)

    (b + g) / (t(R + n) + d) > b / t(R),   that is   g t(R) > b (t(R + n) - t(R) + d)

t is measured (`cost_model`), g, n and d are running means of the sequence. Each row costs the
others more as the batch grows, so drafts end by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from backend.decoding.cost_model import CostModel, measure_costs
from backend.decoding.draft_tree import DraftTokens, NoDraft, PromptLookupFirst, Proposer
from backend.decoding.serving.request import GenerationRequest
from backend.decoding.target_model import TargetModel

SIZES = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 2  # a fraction of a second, in which all wait
MEMORY = 0.9  # weight of what was before
FORGETTING = 0.99  # of what a draft was worth, at each step without one
FIRST_GAIN, FIRST_ROWS = 1.0, 4.0  # what is expected of the first draft


class Drafts:
    """What is drafted for one sequence.

    Attributes:
        needs_states: of all tokens, so that none can come from another sequence's blocks.
        nodes: of the largest tree, the root among them.
        gain, rows, seconds: means of right tokens, rows and duration of a draft.
    """

    def __init__(self, request: GenerationRequest, width: int) -> None:
        proposer: Proposer = request.drafter or NoDraft()
        if request.lookup:
            proposer = PromptLookupFirst(proposer)
        self._proposer, self.nodes = proposer, proposer.nodes
        self.needs_states = request.drafter is not None and request.drafter.nodes > 1
        self._none = torch.empty(0, width)
        self.gain, self.rows, self.seconds = FIRST_GAIN, FIRST_ROWS, 0.0

    def start(self, first: int, capacity: int) -> None:
        """Begin again with the first token of a text of at most `capacity` tokens."""
        self._states, self._fed = list[Tensor](), 1
        if self.nodes > 1:
            self._proposer.start(first, capacity)

    def shorten_lookup(self, length: int) -> None:
        """Look up as many tokens at most."""
        if isinstance(self._proposer, PromptLookupFirst):
            self._proposer.lookup.length = length

    def saw(self, states: Tensor) -> None:
        """Hidden states [n, d] of the next tokens of the text."""
        if self.needs_states:
            self._states.append(states.clone())  # not a view of the states of all

    def propose(self, committed: Sequence[int]) -> DraftTokens:
        """What may follow."""
        started, states = time.perf_counter(), self._states or [self._none]
        joined = torch.cat(states) if len(states) > 1 else states[0]
        draft = self._proposer.propose(joined, committed[self._fed :])
        self._states, self._fed = [], len(committed)
        self.rows = _mean(self.rows, len(draft.tokens))
        self.seconds = _mean(self.seconds, time.perf_counter() - started)
        return draft

    def judge(self, right: int) -> None:
        """How many tokens of the last draft were right."""
        self.gain = _mean(self.gain, right)

    def rest(self) -> None:
        """A step without a draft: the text may have become easier."""
        self.gain = FORGETTING * self.gain + (1 - FORGETTING) * FIRST_GAIN
        self.rows = FORGETTING * self.rows + (1 - FORGETTING) * FIRST_ROWS


class Speculation:
    """Whether drafts pay on this machine."""

    def __init__(self, target: TargetModel) -> None:
        self._target = target

    @cached_property
    def costs(self) -> CostModel:
        return measure_costs(self._target, None, SIZES, REPEATS)

    def pays(self, drafts: Drafts, rows: int, sequences: int) -> bool:
        """In a pass over as many rows, which writes a token to each of the sequences."""
        drafts.shorten_lookup(self.costs.lookup_length)
        before = self.costs.seconds(rows)
        more = self.costs.seconds(rows + round(drafts.rows)) - before + drafts.seconds
        return drafts.gain * before > sequences * more


def _mean(before: float, now: float) -> float:
    return MEMORY * before + (1 - MEMORY) * now
