"""Drafting for each sequence of a batch, and the decision whether a draft pays off.

A pass of R rows for b sequences takes t(R) seconds and writes b tokens. A draft adds n rows, takes
d seconds to make, and g of its tokens are accepted. By our criterion, it increases the tokens per
second of the batch if

    (b + g) / (t(R + n) + d) > b / t(R),   that is   g t(R) > b (t(R + n) - t(R) + d)

t is measured by `cost_model`; g, n and d are running means of the sequence. In a larger batch, an
additional row delays more sequences, so drafting stops without a separate limit.
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

PASS_SIZES = (1, 2, 4, 8, 16, 32, 64)
PASS_REPEATS = 2  # few, because all sequences wait for the measurement
MEAN_DECAY = 0.9  # weight of the old value in a running mean
SKIP_DECAY = 0.99  # the same, for steps without a draft
INITIAL_ACCEPTED, INITIAL_ROWS = 1.0, 4.0  # assumed before the first draft


class SequenceDrafter:
    """Drafts tokens for one sequence, and tracks their acceptance and cost.

    Attributes:
        needs_states: True if the proposer reads the hidden states of all tokens, so that the
            sequence cannot reuse cache blocks of another sequence.
        nodes: maximum size of a draft tree, including the root.
        mean_accepted: running mean of accepted tokens per draft.
        mean_rows: running mean of rows per draft.
        mean_seconds: running mean of the time to make a draft.
    """

    def __init__(self, request: GenerationRequest, width: int) -> None:
        proposer: Proposer = request.drafter or NoDraft()
        if request.lookup:
            proposer = PromptLookupFirst(proposer)
        self._proposer, self.nodes = proposer, proposer.nodes
        self.needs_states = request.drafter is not None and request.drafter.nodes > 1
        self._no_states = torch.empty(0, width)
        self.mean_accepted, self.mean_rows, self.mean_seconds = INITIAL_ACCEPTED, INITIAL_ROWS, 0.0

    def start(self, first: int, capacity: int) -> None:
        """Start a text of at most `capacity` tokens at its first token."""
        self._states, self._proposed_from = list[Tensor](), 1
        if self.nodes > 1:
            self._proposer.start(first, capacity)

    def limit_lookup(self, length: int) -> None:
        """Limit the drafts of prompt lookup to `length` tokens."""
        if isinstance(self._proposer, PromptLookupFirst):
            self._proposer.lookup.length = length

    def add_states(self, states: Tensor) -> None:
        """Store the hidden states [n, d] of the next n tokens."""
        if self.needs_states:
            self._states.append(states.clone())  # a view would keep the states of the whole batch

    def propose(self, committed: Sequence[int]) -> DraftTokens:
        """Draft the tokens after `committed`."""
        started, states = time.perf_counter(), self._states or [self._no_states]
        hidden = torch.cat(states) if len(states) > 1 else states[0]
        draft = self._proposer.propose(hidden, committed[self._proposed_from :])
        self._states, self._proposed_from = [], len(committed)
        self.mean_rows = _running_mean(self.mean_rows, len(draft.tokens))
        self.mean_seconds = _running_mean(self.mean_seconds, time.perf_counter() - started)
        return draft

    def record_accepted(self, tokens: int) -> None:
        """Record the number of accepted tokens of the last draft."""
        self.mean_accepted = _running_mean(self.mean_accepted, tokens)

    def record_skip(self) -> None:
        """Record a step without a draft. The means return slowly to their initial values, because
        the text may have become easier to draft."""
        self.mean_accepted = _running_mean(self.mean_accepted, INITIAL_ACCEPTED, SKIP_DECAY)
        self.mean_rows = _running_mean(self.mean_rows, INITIAL_ROWS, SKIP_DECAY)


class Speculation:
    """Decides whether a draft pays off on this machine."""

    def __init__(self, target: TargetModel) -> None:
        self._target = target

    @cached_property
    def costs(self) -> CostModel:
        """Pass times, measured at first use."""
        return measure_costs(self._target, None, PASS_SIZES, PASS_REPEATS)

    def pays_off(self, drafter: SequenceDrafter, rows: int, sequences: int) -> bool:
        """Return True if a draft pays off in a pass over `rows` rows for `sequences` sequences."""
        drafter.limit_lookup(self.costs.lookup_length)
        plain_seconds = self.costs.seconds(rows)
        drafted_seconds = self.costs.seconds(rows + round(drafter.mean_rows))
        extra_seconds = drafted_seconds - plain_seconds + drafter.mean_seconds
        return drafter.mean_accepted * plain_seconds > sequences * extra_seconds


def _running_mean(mean: float, value: float, decay: float = MEAN_DECAY) -> float:
    return decay * mean + (1 - decay) * value
