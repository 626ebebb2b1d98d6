"""The tree of guesses that one pass of the base verifies.

Node 0, the root, is the token the base has chosen last. A node at depth m carries one of the
guesses of head m, the rank-r most likely; so a node is named by its path (r_1, ..., r_m) of ranks
from 0, and a tree is a set of paths that holds every prefix of its paths. With A[i, j] = 1 where j
is i or an ancestor of i, one forward pass with

    mask = [ 0 over all cached tokens | 0 where A else -inf ],   position_i = cached + depth_i

gives every node the logits that decoding its path alone would have given.

Growing a tree (ours). On held-out text it is known which rank r_k the true token had in head k, for
every anchor. The value of a node is the share of anchors whose ranks begin with its path: the
chance that a verified tree accepts it. A node is worth no more than its parent, so the n most
valuable paths are a tree, and no other tree of n nodes expects to accept more:

    tau(n) = 1 + sum of the n - 1 largest values        (the root is always accepted)

Medusa takes the product of each head's own rate instead, as if heads erred independently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

Path = tuple[int, ...]
Growth = list[tuple[Path, float]]  # paths and their values, the most valuable first

RANKS = 10  # guesses of a head that can enter a tree
LARGEST = 256  # nodes that are ever grown


class Tree:
    """A static tree.

    Attributes:
        paths: of every node but the root, parents before children; nodes: the root's, (), too.
        parents: of every node; -1 for the root.
        depths: of every node; the root's is 0.
        slots: (head, rank) of every node but the root, both from 0.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = sorted(set(paths), key=lambda path: (len(path), path))
        index: dict[Path, int] = {(): 0} | {path: n + 1 for n, path in enumerate(self.paths)}
        for path in self.paths:
            if not path or path[:-1] not in index or min(path) < 0:
                raise ValueError(f"{path} has no parent in the tree")
        self.nodes: list[Path] = [*index]
        self.parents = [-1, *(index[path[:-1]] for path in self.paths)]
        self.depths = [0, *map(len, self.paths)]
        self.slots = [(len(path) - 1, path[-1]) for path in self.paths]
        self.children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], 1):
            self.children[parent].append(node)

    def __len__(self) -> int:
        """Nodes, the root included: tokens that are verified at once."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Heads that are used."""
        return self.depths[-1]

    @property
    def ranks(self) -> int:
        """Guesses of a head that are used."""
        return 1 + max((rank for _, rank in self.slots), default=-1)

    def ancestors(self) -> Tensor:
        """[n, n] bool: whether the column is the row itself or above it."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], 1):
            seen[node] |= seen[parent]
        return seen

    def lineage(self, node: int) -> list[int]:
        """The nodes from the root to `node`."""
        nodes = [node]
        while self.parents[nodes[-1]] >= 0:
            nodes.append(self.parents[nodes[-1]])
        return nodes[::-1]


@lru_cache(maxsize=64)
def chain(length: int) -> Tree:
    """A tree without branches: the root and `length` guesses, one after the other."""
    return Tree((0,) * depth for depth in range(1, length + 1))


def grow(ranks: Tensor, nodes: int = LARGEST) -> Growth:
    """The most valuable paths, best first; every prefix of them is a tree.

    Args:
        ranks: [anchors, heads] the rank the true token had in each head; -1: not among `RANKS`.
        nodes: the most a tree may have, the root included.
    """
    counts = Counter[Path]()
    for row in ranks.tolist():
        for depth, rank in enumerate(row, 1):
            if rank < 0:
                break
            counts[tuple(row[:depth])] += 1
    order = sorted(counts, key=lambda path: (-counts[path], len(path), path))[: nodes - 1]
    return [(path, counts[path] / len(ranks)) for path in order]


def expected_length(growth: Growth, nodes: int) -> float:
    """tau(n): tokens a pass over the best tree of `nodes` nodes is expected to yield."""
    return 1.0 + sum(value for _, value in growth[: nodes - 1])


def best_tree(growth: Growth, nodes: int) -> Tree:
    """The best tree of `nodes` nodes, the root included; fewer where no more were ever right."""
    return Tree(path for path, _ in growth[: max(0, nodes - 1)])


def accepted_lengths(ranks: Tensor, tree: Tree) -> Tensor:
    """[anchors] int: how many tokens a pass over `tree` yields at each anchor, the root counted."""
    paths = set(tree.paths)
    lengths = []
    for row in ranks.tolist():
        depth = 0
        while depth < len(row) and tuple(row[: depth + 1]) in paths:
            depth += 1
        lengths.append(1 + depth)
    return torch.tensor(lengths)


def simulated_length(ranks: Tensor, nodes: int) -> float:
    """Mean accepted length of the best tree of `nodes` nodes, grown on one half of the anchors and
    judged on the other, both ways: a tree always suits the anchors it was grown on."""
    half = len(ranks) // 2
    halves = (ranks[:half], ranks[half:])
    judged: Sequence[Tensor] = [
        accepted_lengths(halves[1 - side], best_tree(grow(halves[side], nodes), nodes))
        for side in (0, 1)
    ]
    return torch.cat(list(judged)).double().mean().item()
