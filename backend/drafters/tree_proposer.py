"""A drafter as a source of draft tokens: its heads, in a tree."""

from collections.abc import Sequence

import torch
from torch import Tensor

from backend.decoding.draft_tree import DynamicTree, StaticTree, Tree, TreePolicy
from backend.decoding.proposers import DraftTokens, Proposer
from backend.decoding.target_model import TargetModel
from backend.drafters.registry import Drafter
from backend.errors import ConfigError


class TreeProposer:
    """The heads of a drafter, in a tree: a static one, or what a policy makes of every draft.
    Raises ConfigError: the tree is deeper than the number of heads, or wider than the vocabulary.
    """

    def __init__(self, drafter: Drafter, target: TargetModel, tree: Tree | TreePolicy) -> None:
        if isinstance(tree, Tree):
            heads, ranks = drafter.config.heads, len(drafter.vocabulary)
            if tree.depth > heads or tree.ranks > ranks:
                raise ConfigError(
                    "The tree does not fit the drafter.",
                    f"It has depth {tree.depth} and {tree.ranks} candidates per head; the drafter "
                    f"has {heads} heads and {ranks} draft tokens.",
                    "Choose a smaller tree.",
                    "nodes",
                )
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


def tree_words(proposer: Proposer) -> str:
    """What a proposer has verified: "a tree of 8 nodes"."""
    if proposer.nodes == 1:
        return "no drafts"
    policy = proposer.policy if isinstance(proposer, TreeProposer) else None
    if isinstance(policy, DynamicTree):
        return f"trees of up to {policy.nodes} nodes, those of a chance above {policy.least:.0%}"
    return f"a tree of {proposer.nodes} nodes"
