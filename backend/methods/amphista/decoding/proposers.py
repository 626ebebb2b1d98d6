"""Who guesses: nobody, the text itself, a small model, or the heads of a drafter.

All of them serve the same decoding loop, so that comparing them compares the guesses and not the
loops. A proposer is told what the base has read and chosen, and answers with a tree of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain as flattened
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.errors import ConfigError
from backend.methods.amphista.drafter.registry import Drafter
from backend.methods.amphista.target_model import TargetModel
from backend.methods.amphista.tree import Tree, chain
from backend.models.kv_cache import PreallocatedCache, cache_name

NOTHING = chain(0)


@dataclass(frozen=True)
class DraftTokens:
    """What a proposer guesses: a token for every node of the tree but the root.

    Attributes:
        looked_up: found in the text, not guessed by heads.
    """

    tokens: list[int]
    tree: Tree
    looked_up: bool = False


class Proposer(Protocol):
    """Guesses the next tokens. One at a time serves one text at a time.

    Attributes:
        nodes: the most nodes a tree of it has, the root included.
    """

    nodes: int

    def start(self, first: int, capacity: int) -> None:
        """A new text of `capacity` tokens at most begins with the token `first`."""

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        """Guesses what follows.

        Args:
            hidden: [n, d] the base's states at the positions it has read since the last call.
            tokens: the token behind each of these positions; the last is not read yet.
        """


class NoDraft:
    """Vanilla decoding: one token a pass."""

    nodes = 1

    def start(self, first: int, capacity: int) -> None:
        pass

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        return DraftTokens([], NOTHING)


class PromptLookup:
    """Prompt lookup (Saxena, 2023): what followed the last time these tokens were seen.

    Args:
        length: tokens guessed at most.
        longest, shortest: tokens that must agree, tried from `longest` down to `shortest`.
    """

    def __init__(self, length: int = 10, longest: int = 2, shortest: int = 1) -> None:
        self.length, self.nodes = length, length + 1
        self._agreeing = range(longest, shortest - 1, -1)

    def start(self, first: int, capacity: int) -> None:
        self._text = [first]
        self._seen: dict[tuple[int, ...], int] = {}  # n-gram -> where it was last followed

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
                found = self._text[place : place + self.length]
                return DraftTokens(found, chain(len(found)), looked_up=True)
        return DraftTokens([], NOTHING)


class AssistantModel:
    """A small model of the same vocabulary guesses greedily, one token after the other.

    Args:
        length: tokens guessed at most.
        confidence: it stops guessing below this probability, as transformers' assistants do.

    Raises:
        ConfigError: its vocabulary is another.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: int,
        length: int = 5,
        confidence: float = 0.4,
    ) -> None:
        own = model.get_output_embeddings().weight.shape[0]
        if own != vocabulary:
            raise ConfigError(
                "The assistant cannot draft for this model.",
                f"It knows {own} tokens, the model {vocabulary}.",
                "Choose one with the same tokenizer.",
                "assistant",
            )
        self.model, self.length, self.confidence = model, length, confidence
        self.nodes, self._name = length + 1, cache_name(model)

    def start(self, first: int, capacity: int) -> None:
        layers = self.model.config.get_text_config().num_hidden_layers
        self._cache = PreallocatedCache(layers, capacity + self.length)
        self._unread = [first]

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        self._unread += tokens
        known = self._cache.length + len(self._unread)
        found: list[int] = []
        given = self._unread
        while len(found) < self.length:
            token, chance = self._next(given)
            if chance < self.confidence:
                break
            found.append(token)
            given = [token]
        self._cache.rewind(known)
        self._unread = []
        return DraftTokens(found, chain(len(found)))

    def _next(self, given: list[int]) -> tuple[int, float]:
        """The most likely token after all that was read and `given`, and its probability."""
        ids = torch.tensor([given], device=self.model.device)
        output = self.model(
            input_ids=ids, use_cache=True, logits_to_keep=1, **{self._name: self._cache}
        )
        chance, token = output.logits[0, -1].float().softmax(-1).max(-1)
        return int(token), chance.item()


class TreeProposer:
    """The heads of a drafter, in a static tree.

    Raises:
        ConfigError: the tree is deeper than there are heads, or wider than they can guess.
    """

    def __init__(self, drafter: Drafter, target: TargetModel, tree: Tree) -> None:
        refuse_unfit_tree(drafter, tree)
        self.drafter, self.target, self.tree, self.nodes = drafter, target, tree, len(tree)

    def start(self, first: int, capacity: int) -> None:
        self._caches = self.drafter.new_caches(capacity)

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        embedded = self.target.embed(torch.tensor([tokens], device=hidden.device))
        stages = self.drafter.stages(hidden[None], embedded, self._caches)
        slots = self.drafter.slots([stage[0, -1:] for stage in stages])[0, : self.tree.depth]
        best = self.drafter.logits(slots).topk(self.tree.ranks).indices
        ids = self.drafter.vocabulary[best].tolist()
        return DraftTokens([ids[head][rank] for head, rank in self.tree.slots], self.tree)


class PromptLookupFirst:
    """Looks the last tokens up in the text; where even two are new, another guesses (ours).

    Looking up costs nothing, and two tokens that stood together before are often followed by the
    same again; but most pairs are new. The other reads what was committed meanwhile when it is
    asked again.
    """

    def __init__(self, other: Proposer) -> None:
        self.lookup, self.other = PromptLookup(longest=4, shortest=2), other
        self.nodes = max(self.lookup.nodes, other.nodes)

    def start(self, first: int, capacity: int) -> None:
        self.lookup.start(first, capacity)
        self.other.start(first, capacity)
        self._unread: list[tuple[Tensor, Sequence[int]]] = []

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        self._unread.append((hidden, tokens))
        guess = self.lookup.propose(hidden, tokens)
        if guess.looked_up:
            return guess
        states, texts = zip(*self._unread, strict=True)
        self._unread = []
        return self.other.propose(torch.cat(states), list(flattened.from_iterable(texts)))


def refuse_unfit_tree(drafter: Drafter, tree: Tree) -> None:
    """Raises `ConfigError` where a tree asks for more than a drafter guesses."""
    heads, ranks = drafter.config.heads, len(drafter.vocabulary)
    if tree.depth > heads or tree.ranks > ranks:
        raise ConfigError(
            "The tree does not fit the drafter.",
            f"It is {tree.depth} deep and uses {tree.ranks} guesses of a head; the drafter has "
            f"{heads} heads and {ranks} guesses.",
            "Choose a smaller tree.",
            "nodes",
        )
