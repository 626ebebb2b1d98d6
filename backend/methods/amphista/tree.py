"""Trees of draft tokens that the target model verifies in one pass.

Node 0, the root, is the last token the target model chose. A node at depth m is one of the
candidates of head m, the rank-r most likely; so a node is identified by its path (r_1, ..., r_m)
of ranks from 0, and a tree is a set of paths closed under prefixes. With A[i, j] = 1 where j is i
or an ancestor of i, one forward pass with

    mask = [ 0 over all cached tokens | 0 where A else -inf ],   position_i = cached + depth_i

gives every node the same logits as decoding its path alone.

Growing a tree (ours). On held-out text the rank r_k of the true token in head k is known for every
anchor. The value of a node is the share of anchors whose ranks begin with its path: the probability
that verification accepts it. No node is worth more than its parent, so the n most valuable paths
form a tree, and no other tree of n nodes has a higher expected accepted length:

    tau(n) = 1 + sum of the n - 1 largest values        (the root is always accepted)

Medusa uses the product of per-head accuracies instead, as if heads erred independently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

Path = tuple[int, ...]
Growth = list[tuple[Path, float]]  # paths and their values, the most valuable first

RANKS = 10  # candidates per head that can enter a tree
LARGEST = 256  # maximum number of nodes


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
        """Number of nodes, including the root: tokens verified at once."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Number of heads used."""
        return self.depths[-1]

    @property
    def ranks(self) -> int:
        """Number of candidates used per head."""
        return 1 + max((rank for _, rank in self.slots), default=-1)

    def ancestors(self) -> Tensor:
        """[n, n] bool: whether the column is the row itself or its ancestor."""
        ancestors = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], 1):
            ancestors[node] |= ancestors[parent]
        return ancestors

    def lineage(self, node: int) -> list[int]:
        """The nodes from the root to `node`."""
        nodes = [node]
        while self.parents[nodes[-1]] >= 0:
            nodes.append(self.parents[nodes[-1]])
        return nodes[::-1]


@lru_cache(maxsize=64)
def chain(length: int) -> Tree:
    """A tree without branches: the root and `length` draft tokens in sequence."""
    return Tree((0,) * depth for depth in range(1, length + 1))


def grow(ranks: Tensor, nodes: int = LARGEST) -> Growth:
    """The most valuable paths, best first; the first n of them form a tree for every n.

    Args:
        ranks: [anchors, heads] rank of the true token in each head; -1: not among `RANKS`.
        nodes: maximum number of nodes, including the root.
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
    """tau(n): expected accepted length of the best tree of `nodes` nodes."""
    return 1.0 + sum(value for _, value in growth[: nodes - 1])


def best_tree(growth: Growth, nodes: int) -> Tree:
    """The best tree of `nodes` nodes, including the root; smaller if no more were ever right."""
    return Tree(path for path, _ in growth[: max(0, nodes - 1)])


def accepted_lengths(ranks: Tensor, tree: Tree) -> Tensor:
    """[anchors] int: accepted length of `tree` at each anchor, counting the root."""
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
    evaluated on the other, both ways, as a tree overfits the anchors it was grown on."""
    half = len(ranks) // 2
    halves = (ranks[:half], ranks[half:])
    judged: Sequence[Tensor] = [
        accepted_lengths(halves[1 - side], best_tree(grow(halves[side], nodes), nodes))
        for side in (0, 1)
    ]
    return torch.cat(list(judged)).double().mean().item()
