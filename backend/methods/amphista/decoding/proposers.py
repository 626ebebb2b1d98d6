"""Sources of draft tokens: none, prompt lookup, or the heads of a drafter.

All serve the same decoding loop, so that a comparison measures the drafts and not the loops. A
proposer gets the states and tokens of the target model and returns a tree of draft tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain as flattened
from typing import Protocol

import torch
from torch import Tensor

from backend.errors import ConfigError
from backend.methods.amphista.drafter.registry import Drafter
from backend.methods.amphista.target_model import TargetModel
from backend.methods.amphista.tree import DynamicTree, StaticTree, Tree, TreePolicy, chain

NOTHING = chain(0)


@dataclass(frozen=True)
class DraftTokens:
    """Draft tokens: one for every node of the tree but the root.

    Attributes:
        looked_up: from prompt lookup, not from heads.
    """

    tokens: list[int]
    tree: Tree
    looked_up: bool = False


class Proposer(Protocol):
    """Drafts the next tokens of one sequence at a time.

    Attributes:
        nodes: maximum number of tree nodes, including the root.
    """

    nodes: int

    def start(self, first: int, capacity: int) -> None:
        """Begin a new sequence of at most `capacity` tokens with the token `first`."""

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        """Draft what follows.

        Args:
            hidden: [n, d] the target model's states at the positions since the last call.
            tokens: the token after each of these positions; the last one has not been run yet.
        """


class NoDraft:
    """Vanilla decoding: one token per pass."""

    nodes = 1

    def start(self, first: int, capacity: int) -> None:
        pass

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        return DraftTokens([], NOTHING)


class PromptLookup:
    """Prompt lookup decoding (Saxena, 2023): copy what followed the last n-gram match.

    Args:
        length: maximum number of draft tokens.
        longest, shortest: n-gram lengths, tried from `longest` down to `shortest`.
    """

    def __init__(self, length: int = 10, longest: int = 2, shortest: int = 1) -> None:
        self.length, self.nodes = length, length + 1
        self._agreeing = range(longest, shortest - 1, -1)

    def start(self, first: int, capacity: int) -> None:
        self._text = [first]
        self._seen: dict[tuple[int, ...], int] = {}  # n-gram -> position after its last occurrence

    def _append(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            here = len(self._text)
            for n in self._agreeing:
                if n <= here:
                    self._seen[tuple(self._text[here - n :])] = here
            self._text.append(token)

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        self._append(tokens)
        for n in self._agreeing:
            place = self._seen.get(tuple(self._text[-n:]))
            if place is not None:
                tokens = self._text[place : place + self.length]
                return DraftTokens(tokens, chain(len(tokens)), looked_up=True)
        return DraftTokens([], NOTHING)


class TreeProposer:
    """The heads of a drafter, in a tree: a static one, or what a policy makes of every draft.

    Raises:
        ConfigError: the tree is deeper than the number of heads, or wider than the vocabulary.
    """

    def __init__(self, drafter: Drafter, target: TargetModel, tree: Tree | TreePolicy) -> None:
        if isinstance(tree, Tree):
            refuse_unfit_tree(drafter, tree)
            tree = StaticTree(tree)
        self.drafter, self.target, self.policy, self.nodes = drafter, target, tree, tree.nodes

    def start(self, first: int, capacity: int) -> None:
        drafted = self.nodes * self.drafter.config.heads  # at most, at all depths
        self._caches = self.drafter.new_caches(capacity + drafted)

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        hidden = hidden.to(self.target.device)  # a cached answer's are elsewhere
        embedded = self.target.embed(torch.tensor([tokens], device=hidden.device))
        tree, tokens = self.drafter.draft(
            hidden[None], embedded, self.policy, self._caches, self.target.embed
        )
        return DraftTokens(tokens, tree)


class PromptLookupFirst:
    """Prompt lookup with n-grams of 2 to 4 tokens; without a match another proposer drafts (ours).

    Lookup is free, and a repeated pair of tokens is often followed by the same token again; but
    most pairs are new. The other proposer catches up on committed tokens when it is next used.

    Args:
        length: maximum number of draft tokens of a lookup.
    """

    def __init__(self, other: Proposer, length: int = 10) -> None:
        self.lookup, self.other = PromptLookup(length, longest=4, shortest=2), other
        self.nodes = max(self.lookup.nodes, other.nodes)

    def start(self, first: int, capacity: int) -> None:
        self.lookup.start(first, capacity)
        self.other.start(first, capacity)
        self._unread: list[tuple[Tensor, Sequence[int]]] = []

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        self._unread.append((hidden, tokens))
        draft = self.lookup.propose(hidden, tokens)
        if draft.looked_up:
            return draft
        states, texts = zip(*self._unread, strict=True)
        self._unread = []
        return self.other.propose(torch.cat(states), list(flattened.from_iterable(texts)))


def tree_words(proposer: Proposer) -> str:
    """What a proposer has verified: "a tree of 8 nodes"."""
    if proposer.nodes == 1:
        return "no drafts"
    policy = proposer.policy if isinstance(proposer, TreeProposer) else None
    if isinstance(policy, DynamicTree):
        return f"trees of up to {policy.nodes} nodes, those of a chance above {policy.least:.0%}"
    return f"a tree of {proposer.nodes} nodes"


def refuse_unfit_tree(drafter: Drafter, tree: Tree) -> None:
    """Raise `ConfigError` if a tree needs more heads or ranks than the drafter has."""
    heads, ranks = drafter.config.heads, len(drafter.vocabulary)
    if tree.depth > heads or tree.ranks > ranks:
        raise ConfigError(
            "The tree does not fit the drafter.",
            f"It has depth {tree.depth} and {tree.ranks} candidates per head; the drafter has "
            f"{heads} heads and {ranks} draft tokens.",
            "Choose a smaller tree.",
            "nodes",
        )
