"""Prompt lookup: draft tokens copied from an earlier place in the same text."""

from collections.abc import Sequence
from itertools import chain as flattened

import torch
from torch import Tensor

from backend.decoding.draft_tree import NO_TREE, DraftTokens, Proposer, chain


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
