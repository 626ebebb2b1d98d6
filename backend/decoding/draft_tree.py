"""Trees of draft tokens that the target model verifies in one pass.

Node 0, the root, is the last token the target model chose. A node at depth m is one of the
candidates of head m, the rank-r most likely; so a node is identified by its path (r_1, ..., r_m)
of ranks from 0, and a tree is a set of paths closed under prefixes. With A[i, j] = 1 where j is i
or an ancestor of i, one forward pass with

    mask = [ 0 over all cached tokens | 0 where A else -inf ],   position_i = cached + depth_i

gives every node the same logits as decoding its path alone.

Growing a tree (ours). On held-out text the rank r_k of the true token in head k is known for every
anchor. The share of anchors whose ranks begin with a path is the probability that verification
accepts its node. No node is accepted more often than its parent, so the n most frequent paths form
a tree, and over all anchors no other tree of n nodes accepts more. Medusa uses the product of
per-head accuracies instead, as if heads erred independently.

Accepted length (ours). Decoding does not stop at every anchor: what is accepted is skipped, and
that is where guessing is easy, so that the mean over all anchors is too high. The held-out answers
are greedy, so decoding them can be walked exactly without the target model:

    a = 0;  repeat: commit L_a tokens, a += L_a       L_a: accepted length at anchor a
    tau(n) = tokens / passes

of the tree of n nodes that was grown on one half of the answers, walked over the other half, both
ways. The value of the nth node of a growth is tau(n + 1) - tau(n).

Contract of a source of draft tokens. All serve the same decoding loop, so that a comparison
measures the drafts: prompt lookup, which copies from an earlier place in the same text, the heads
of a drafter (`backend.drafters.generate`), or nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import nlargest
from itertools import chain as flattened
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Path = tuple[int, ...]
Growth = list[tuple[Path, float]]  # paths and their values, the most frequent first

RANKS = 10  # candidates per head that can enter a tree
MAX_NODES = 256  # maximum number of nodes


class Tree:
    """A static tree. `paths` and `slots` (head, rank) are of every node but the root, parents
    before children; `nodes` (paths), `parents` (-1: none) and `depths` of the root (), too.
    `ancestors`: [n, n] bool, whether the column is the row itself or its ancestor; `mask`: the same
    in bytes.
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
        self.ancestors = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], 1):
            self.children[parent].append(node)
            self.ancestors[node] |= self.ancestors[parent]
        self.mask = self.ancestors.byte()

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

    def lineage(self, node: int) -> list[int]:
        """The nodes from the root to `node`."""
        nodes = [node]
        while self.parents[nodes[-1]] >= 0:
            nodes.append(self.parents[nodes[-1]])
        return nodes[::-1]


class StaticTree:
    """The same tree at every step: of `nodes` with the root, from `ranks` candidates after each.
    `inner`: the paths of a depth whose children are wanted, by the chances of those drafted;
    `tree`: the tree to verify."""

    def __init__(self, tree: Tree) -> None:
        self._tree, self.nodes, self.ranks, self.paths = tree, len(tree), tree.ranks, tree.paths
        inner = [path for path, below in zip(tree.nodes, tree.children, strict=True) if below]
        self._inner = [[p for p in inner if len(p) == depth] for depth in range(tree.depth + 1)]

    def inner(self, chances: Mapping[Path, float], depth: int) -> list[Path]:
        return self._inner[depth] if depth < len(self._inner) else []

    def tree(self, chances: Mapping[Path, float]) -> Tree:
        return self._tree


@dataclass(frozen=True)
class DynamicTree:
    """The most likely paths of this step, as far as verifying them pays (after EAGLE-2, Li et al.,
    arXiv 2406.16858; the threshold is ours).

    The chance of a path is the product of the probabilities the drafter gives its tokens. A path of
    a chance below `least` is not verified; see `CostModel.dynamic_tree`."""

    nodes: int
    least: float
    ranks: int = 8

    def _likely(self, chances: Mapping[Path, float]) -> list[Path]:
        """No path is more likely than its parent, so these are closed under prefixes."""
        found = nlargest(self.nodes, chances, key=lambda path: (chances[path], -len(path)))
        return [path for path in found if path and chances[path] >= self.least]

    def inner(self, chances: Mapping[Path, float], depth: int) -> list[Path]:
        return [path for path in self._likely(chances) if len(path) == depth]

    def tree(self, chances: Mapping[Path, float]) -> Tree:
        return Tree(self._likely(chances))


TreePolicy: TypeAlias = StaticTree | DynamicTree  # what is drafted at a step


@lru_cache(maxsize=64)
def chain(length: int) -> Tree:
    """A tree without branches: the root and `length` draft tokens in sequence."""
    return Tree((0,) * depth for depth in range(1, length + 1))


def frequent_paths(ranks: Tensor, nodes: int = MAX_NODES) -> list[Path]:
    """The paths that are accepted most often, best first; the first n form a tree for every n.

    `ranks`: [anchors, heads] of the true token in each head; -1: not among `RANKS`."""
    counts = Counter[Path]()
    for row in ranks.tolist():
        for depth, rank in enumerate(row, 1):
            if rank < 0:
                break
            counts[tuple(row[:depth])] += 1
    return sorted(counts, key=lambda path: (-counts[path], len(path), path))[: nodes - 1]


def grow(answers: Sequence[Tensor], nodes: int = MAX_NODES) -> Growth:
    """The most frequent paths, and what each adds to the accepted length, from the ranks [anchors,
    heads] at the successive anchors of each answer."""
    paths = frequent_paths(torch.cat(list(answers)), nodes)
    lengths = walked_lengths(answers, range(1, len(paths) + 2))
    return [(path, lengths[n + 1] - lengths[n]) for n, path in enumerate(paths)]


def walked_lengths(answers: Sequence[Tensor], sizes: Sequence[int]) -> list[float]:
    """tau(n) of each tree size: trees are grown on every other answer and walked over the others.
    A single answer has to do for both."""
    halves = [answers[::2], answers[1::2]] if len(answers) > 1 else [answers, answers]
    tokens, passes = [0] * len(sizes), [0] * len(sizes)
    for grown, walked in (halves, halves[::-1]):
        place = {p: n for n, p in enumerate(frequent_paths(torch.cat(list(grown)), max(sizes)))}
        for ranks in walked:
            rows = [
                [place.get(tuple(row[:depth]), MAX_NODES) for depth in range(1, len(row) + 1)]
                for row in ranks.tolist()
            ]
            places = torch.tensor(rows).view(ranks.shape)  # in the growth, of each head's true path
            for number, size in enumerate(sizes):
                lengths = 1 + (places < size - 1).sum(-1)
                made, taken = walk(lengths.tolist())
                tokens[number] += made
                passes[number] += taken
    return [made / taken if taken else 1.0 for made, taken in zip(tokens, passes, strict=True)]


def walk(lengths: Sequence[int]) -> tuple[int, int]:
    """Tokens and passes of decoding an answer, from the accepted length at each of its anchors."""
    at, passes = 0, 0
    while at < len(lengths):
        at += lengths[at]
        passes += 1
    return at, passes


def expected_length(growth: Growth, nodes: int) -> float:
    """tau(n): accepted length of the best tree of `nodes` nodes."""
    return 1.0 + sum(value for _, value in growth[: nodes - 1])


def best_tree(growth: Growth, nodes: int) -> Tree:
    """The best tree of `nodes` nodes, including the root; smaller if no more were ever right."""
    return Tree(path for path, _ in growth[: max(0, nodes - 1)])


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


class PromptLookup:
    """Prompt lookup decoding (Saxena, 2023): copy up to `length` tokens that followed the last
    match of an n-gram, tried from `longest` down to `shortest`."""

    def __init__(self, length: int = 10, longest: int = 2, shortest: int = 1) -> None:
        self.length, self.nodes = length, length + 1
        self._agreeing = range(longest, shortest - 1, -1)

    def start(self, first: int, capacity: int) -> None:
        self._text = [first]
        self._seen: dict[tuple[int, ...], int] = {}  # n-gram -> position after its last occurrence

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        for token in tokens:
            here = len(self._text)
            for n in self._agreeing:
                if n <= here:
                    self._seen[tuple(self._text[here - n :])] = here
            self._text.append(token)
        for n in self._agreeing:
            place = self._seen.get(tuple(self._text[-n:]))
            if place is not None:
                tokens = self._text[place : place + self.length]
                return DraftTokens(tokens, chain(len(tokens)), looked_up=True)
        return DraftTokens([], NO_TREE)


class PromptLookupFirst:
    """Prompt lookup with n-grams of 2 to 4 tokens; without a match another proposer drafts (ours).

    Lookup is free, and a repeated pair of tokens is often followed by the same token again; but
    most pairs are new. The other proposer catches up on committed tokens when it is next used."""

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
