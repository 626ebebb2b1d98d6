"""Contract of a source of draft tokens. All serve the same decoding loop, so that a comparison
measures the drafts: prompt lookup, the heads of a drafter (`backend.drafters.tree_proposer`), or
nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from backend.decoding.draft_tree import Tree, chain

NO_TREE = chain(0)


@dataclass(frozen=True)
class DraftTokens:
    """Draft tokens: one for every node of the tree but the root, looked up or from heads."""

    tokens: list[int]
    tree: Tree
    looked_up: bool = False


class Proposer(Protocol):
    """Drafts the next tokens of one sequence at a time, in trees of at most `nodes` nodes."""

    nodes: int

    def start(self, first: int, capacity: int) -> None:
        """Begin a new sequence of at most `capacity` tokens with the token `first`."""

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        """Draft what follows `tokens`, of which the last has not been run yet. `hidden`: [n, d] the
        target model's states at the positions since the last call, each before its token."""


class NoDraft:
    """Vanilla decoding: one token per pass."""

    nodes = 1

    def start(self, first: int, capacity: int) -> None:
        pass

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        return DraftTokens([], NO_TREE)
