"""Tree of a sequential drafter, depth by depth, each token from the path before it. In
`anchor_slots` the path is that of the text, since decoding goes on only behind draft tokens that
were right."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.decoding.draft_tree import Path, Tree, TreePolicy
from backend.decoding.native.cache import DecodingCache
from backend.drafters.layers.adapted import AdaptedDrafter
from backend.drafters.registry import Embed


@dataclass
class InnerNodes:
    """The inner nodes of a tree that is being drafted, parents before children, the root (x_{i+1})
    first.

    Attributes:
        tokens: [n, d] embeddings of the last token of each path.
        slots: [n, d] what that token was read from; a_i for the root.
        new: number of nodes of the last depth.
    """

    paths: list[Path]
    tokens: Tensor
    slots: Tensor
    new: int = 1

    def grow(self, paths: list[Path], tokens: Tensor, slots: Tensor) -> None:
        self.paths += paths
        self.tokens, self.slots = torch.cat([self.tokens, tokens]), torch.cat([self.slots, slots])
        self.new = len(paths)

    def lineage(self, path: Path) -> list[int]:
        """The nodes from the root to `path`."""
        return [self.paths.index(path[:depth]) for depth in range(len(path) + 1)]


class SequentialDrafter(AdaptedDrafter):
    """A drafter in which every node of a tree is predicted from the path to it."""

    @abstractmethod
    def next_slots(self, inner: InnerNodes, caches: list[DecodingCache]) -> Tensor:
        """Vectors [m, d] for the children of the m new inner nodes; the caches stay as they are."""

    def draft(
        self,
        hidden: Tensor,
        embedded: Tensor,
        policy: TreePolicy,
        caches: list[DecodingCache],
        embed: Embed,
    ) -> tuple[Tree, list[int]]:
        state = self.stages(hidden, embedded, caches)[-1][0, -1:]
        inner, level = InnerNodes([()], embedded[0, -1:].to(state.dtype), state), list[Path]([()])
        chances: dict[Path, float] = {(): 1.0}
        tokens: dict[Path, int] = {}
        for depth in range(1, self.config.heads + 1):
            slots = self.next_slots(inner, caches)
            for path, found in zip(level, self.candidates(slots, policy.ranks), strict=True):
                for rank, (token, chance) in enumerate(found):
                    tokens[*path, rank], chances[*path, rank] = token, chances[path] * chance
            parents, level = level, policy.inner(chances, depth)
            if not level or depth == self.config.heads:
                break
            chosen = torch.tensor([tokens[path] for path in level], device=hidden.device)
            before = slots[[parents.index(path[:-1]) for path in level]]
            inner.grow(level, embed(chosen).to(slots.dtype), before)
        tree = policy.tree(chances)
        return tree, [tokens[path] for path in tree.paths]
