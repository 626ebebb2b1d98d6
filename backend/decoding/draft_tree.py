"""Trees of draft tokens, which the target model verifies in one pass, and their proposers.

Node 0, the root, is the last token the target model chose. A node at depth m is the candidate of
rank r of head m (rank 0: most likely). A node is identified by its path (r_1, ..., r_m) of ranks,
and a tree is a set of paths closed under prefixes. With A[i, j] = 1 if j is i or an ancestor of i,
one forward pass with

    mask = [ 0 over all cached tokens | 0 where A else -inf ],   position_i = cached + depth_i

gives every node the same logits as decoding its path alone.

Growing a tree (ours). An anchor is a position of held-out text at which a draft starts. The rank
r_k of the true token in head k is known at every anchor. The share of anchors whose ranks begin
with a path is the probability that verification accepts its node. No node is accepted more often
than its parent, so the n most frequent paths form a tree, and over all anchors no other tree of n
nodes accepts more. Medusa uses the product of per-head accuracies instead, as if the errors of
heads were independent.

Accepted length (ours). Decoding does not stop at every anchor: it skips accepted tokens, which are
the easy ones, so a mean over all anchors is too high. The held-out answers are greedy, so decoding
can be replayed exactly without the target model:

    a = 0;  repeat: commit L_a tokens, a += L_a       L_a: accepted length at anchor a
    tau(n) = tokens / passes

The tree of n nodes is grown on one half of the answers and replayed on the other half, in both
directions. The value of the nth node of a growth is tau(n + 1) - tau(n).

Proposers are the sources of draft tokens: prompt lookup, which copies from an earlier position of
the same text, the heads of a drafter (`backend.drafters.generate`), or none. All run in the same
decoding loop, so a comparison measures only the drafts.
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
Growth = list[tuple[Path, float]]  # paths with their values, most frequent first

RANKS = 10  # candidates per head that can enter a tree
MAX_NODES = 256


class Tree:
    """A static draft tree. Parents come before children.

    Attributes:
        paths: path of every node except the root.
        slots: (head, rank) of every node except the root.
        nodes: path of every node; () for the root.
        parents: parent of every node; -1 for the root.
        depths: depth of every node; 0 for the root.
        children: children of every node.
        ancestors: [n, n] bool, True if the column is the row's node or one of its ancestors.
        mask: `ancestors` in bytes.
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
        """Return the number of nodes, including the root."""
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
        """Return the nodes from the root to `node`."""
        nodes = [node]
        while self.parents[nodes[-1]] >= 0:
            nodes.append(self.parents[nodes[-1]])
        return nodes[::-1]


class StaticTree:
    """Tree policy that drafts the same tree at every step.

    Attributes:
        nodes: number of nodes, including the root.
        ranks: number of candidates per node.
        paths: paths of the tree.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree, self.nodes, self.ranks, self.paths = tree, len(tree), tree.ranks, tree.paths
        inner = [path for path, nodes in zip(tree.nodes, tree.children, strict=True) if nodes]
        self._inner = [[p for p in inner if len(p) == depth] for depth in range(tree.depth + 1)]

    def inner(self, chances: Mapping[Path, float], depth: int) -> list[Path]:
        """Return the paths of a depth whose children are drafted next. `chances` maps the paths
        drafted so far to their probabilities."""
        return self._inner[depth] if depth < len(self._inner) else []

    def tree(self, chances: Mapping[Path, float]) -> Tree:
        """Return the tree to verify."""
        return self._tree


@dataclass(frozen=True)
class DynamicTree:
    """Tree policy that verifies the most likely paths of each step (after EAGLE-2, Li et al., arXiv
    2406.16858; the threshold is ours).

    The probability of a path is the product of the drafter's probabilities of its tokens.

    Attributes:
        nodes: maximum number of nodes, including the root.
        least: paths with a lower probability are not verified; see `CostModel.dynamic_tree`.
        ranks: number of candidates per node.
    """

    nodes: int
    least: float
    ranks: int = 8

    def _likely(self, chances: Mapping[Path, float]) -> list[Path]:
        """Return the most likely paths. No path is more likely than its parent, so the result is
        closed under prefixes."""
        likely = nlargest(self.nodes, chances, key=lambda path: (chances[path], -len(path)))
        return [path for path in likely if path and chances[path] >= self.least]

    def inner(self, chances: Mapping[Path, float], depth: int) -> list[Path]:
        """Return the paths of a depth whose children are drafted next. `chances` maps the paths
        drafted so far to their probabilities."""
        return [path for path in self._likely(chances) if len(path) == depth]

    def tree(self, chances: Mapping[Path, float]) -> Tree:
        """Return the tree to verify."""
        return Tree(self._likely(chances))


TreePolicy: TypeAlias = StaticTree | DynamicTree  # chooses the tree of a step


@lru_cache(maxsize=64)
def chain(length: int) -> Tree:
    """Return a tree without branches: the root and `length` draft tokens in sequence."""
    return Tree((0,) * depth for depth in range(1, length + 1))


def frequent_paths(ranks: Tensor, nodes: int = MAX_NODES) -> list[Path]:
    """Return the most often accepted paths, best first. The first n form a tree for every n.

    Args:
        ranks: [anchors, heads], rank of the true token in each head; -1 if it is not among the top
            `RANKS`.
    """
    counts = Counter[Path]()
    for row in ranks.tolist():
        for depth, rank in enumerate(row, 1):
            if rank < 0:
                break
            counts[tuple(row[:depth])] += 1
    return sorted(counts, key=lambda path: (-counts[path], len(path), path))[: nodes - 1]


def grow(answers: Sequence[Tensor], nodes: int = MAX_NODES) -> Growth:
    """Return the most frequent paths and what each adds to the accepted length. `answers` are the
    ranks [anchors, heads] at the successive anchors of each answer."""
    paths = frequent_paths(torch.cat(list(answers)), nodes)
    lengths = walked_lengths(answers, range(1, len(paths) + 2))
    return [(path, lengths[n + 1] - lengths[n]) for n, path in enumerate(paths)]


def walked_lengths(answers: Sequence[Tensor], sizes: Sequence[int]) -> list[float]:
    """Return tau(n) of each tree size. Trees are grown on one half of the answers and replayed on
    the other; a single answer serves as both halves."""
    halves = [answers[::2], answers[1::2]] if len(answers) > 1 else [answers, answers]
    tokens, passes = [0] * len(sizes), [0] * len(sizes)
    for training, heldout in (halves, halves[::-1]):
        paths = frequent_paths(torch.cat(list(training)), max(sizes))
        order = {path: index for index, path in enumerate(paths)}
        for ranks in heldout:
            rows = [
                [order.get(tuple(row[:depth]), MAX_NODES) for depth in range(1, len(row) + 1)]
                for row in ranks.tolist()
            ]
            indices = torch.tensor(rows).view(
                ranks.shape
            )  # index of each head's true path in `paths`
            for number, size in enumerate(sizes):
                lengths = 1 + (indices < size - 1).sum(-1)
                answer_tokens, answer_passes = walk(lengths.tolist())
                tokens[number] += answer_tokens
                passes[number] += answer_passes
    return [t / p if p else 1.0 for t, p in zip(tokens, passes, strict=True)]


def walk(lengths: Sequence[int]) -> tuple[int, int]:
    """Return the tokens and passes of decoding an answer, given the accepted length at each
    anchor."""
    anchor, passes = 0, 0
    while anchor < len(lengths):
        anchor += lengths[anchor]
        passes += 1
    return anchor, passes


def expected_length(growth: Growth, nodes: int) -> float:
    """Return tau(n), the accepted length of the best tree of `nodes` nodes."""
    return 1.0 + sum(value for _, value in growth[: nodes - 1])


def best_tree(growth: Growth, nodes: int) -> Tree:
    """Return the best tree of `nodes` nodes, including the root. Smaller if fewer paths were ever
    accepted."""
    return Tree(path for path, _ in growth[: max(0, nodes - 1)])


NO_TREE = chain(0)


@dataclass(frozen=True)
class DraftTokens:
    """Draft tokens, one for every node of the tree except the root. `looked_up` is True if they
    come from prompt lookup."""

    tokens: list[int]
    tree: Tree
    looked_up: bool = False


class Proposer(Protocol):
    """Drafts the next tokens of one sequence at a time, in trees of at most `nodes` nodes."""

    nodes: int

    def start(self, first: int, capacity: int) -> None:
        """Start a new sequence of at most `capacity` tokens with the token `first`."""

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        """Draft the tokens after `tokens`. The target model has not read the last of them yet.

        Args:
            hidden: [n, d], the target model's states since the last call, each at the position
                before its token.
            tokens: the n tokens committed since the last call.
        """


class NoDraft:
    """Proposer of vanilla decoding, one token per pass."""

    nodes = 1

    def start(self, first: int, capacity: int) -> None:
        pass

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        return DraftTokens([], NO_TREE)


class PromptLookup:
    """Prompt lookup decoding (Saxena, 2023): copies up to `length` tokens that followed the last
    match of an n-gram. N-grams are tried from `longest` down to `shortest` tokens."""

    def __init__(self, length: int = 10, longest: int = 2, shortest: int = 1) -> None:
        self.length, self.nodes = length, length + 1
        self._ngram_sizes = range(longest, shortest - 1, -1)

    def start(self, first: int, capacity: int) -> None:
        self._text = [first]
        self._continuations: dict[tuple[int, ...], int] = {}  # n-gram -> position after last match

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        for token in tokens:
            end = len(self._text)
            for n in self._ngram_sizes:
                if n <= end:
                    self._continuations[tuple(self._text[end - n :])] = end
            self._text.append(token)
        for n in self._ngram_sizes:
            start = self._continuations.get(tuple(self._text[-n:]))
            if start is not None:
                tokens = self._text[start : start + self.length]
                return DraftTokens(tokens, chain(len(tokens)), looked_up=True)
        return DraftTokens([], NO_TREE)


class PromptLookupFirst:
    """Prompt lookup with n-grams of 2 to 4 tokens, and another proposer if there is no match
    (ours).

    Lookup is free, and a repeated pair of tokens is often followed by the same token, but most
    pairs are new. The fallback reads the tokens committed in the meantime when it is next used."""

    def __init__(self, fallback: Proposer, length: int = 10) -> None:
        self.lookup, self.fallback = PromptLookup(length, longest=4, shortest=2), fallback
        self.nodes = max(self.lookup.nodes, fallback.nodes)

    def start(self, first: int, capacity: int) -> None:
        self.lookup.start(first, capacity)
        self.fallback.start(first, capacity)
        self._unread: list[tuple[Tensor, Sequence[int]]] = []

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        self._unread.append((hidden, tokens))
        draft = self.lookup.propose(hidden, tokens)
        if draft.looked_up:
            return draft
        states, texts = zip(*self._unread, strict=True)
        self._unread = []
        return self.fallback.propose(torch.cat(states), list(flattened.from_iterable(texts)))
