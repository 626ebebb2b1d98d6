"""Generation requests to the engine, and the events it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from backend.decoding.acceptance import Sampling
from backend.decoding.draft_tree import Proposer, Tree
from backend.errors import SlimscopeError
from backend.models.foreign_tokenizer import TextTokenizer

# Called with the position of the first of n tokens, their hidden states [n, d], and the logits
# [m, V] after the last m of them. Positions start over at 0 if the sequence is restarted.
StateObserver: TypeAlias = Callable[[int, Tensor, Tensor], None]
TopTokens: TypeAlias = tuple[tuple[int, float], ...]  # token ids with their log-probabilities


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt and the settings of its answer.

    Attributes:
        prompt: token ids.
        max_tokens: maximum number of new tokens; 0, together with `echo`, reads the prompt only.
        ends: token ids that end the answer.
        stop: strings that end the answer.
        logprobs: number of most likely tokens whose log-probabilities are reported in addition to
            the chosen token's. None: no log-probabilities. They are the model's, before sampling.
        echo: report the tokens of the prompt as well.
        person: visitor who sent the request. Visitors take turns.
        drafter: proposer for this request alone.
        lookup: try prompt lookup before the drafter.
        tokenizer: decodes the tokens of this request; None: the loop's tokenizer.
        observe: called with the hidden states of all tokens read, and with the logits that predict
            the tokens of the answer.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    ends: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    person: str = ""
    drafter: Proposer | None = None
    lookup: bool = False
    tokenizer: TextTokenizer | None = None
    observe: StateObserver | None = None


@dataclass(frozen=True)
class Piece:
    """A token and the text that it completed; `head` as in `DecodeStep`."""

    text: str
    head: int
    token: int
    logprob: float | None = None
    top: TopTokens = ()


@dataclass(frozen=True)
class Waiting:
    """Position of a request in the queue (0: next), and the estimated seconds until it starts."""

    place: int
    seconds: float


PARTS = ("draft", "verify", "accept", "cache")  # timed parts of a pass


@dataclass(frozen=True)
class DecodeStep:
    """The result of one pass of the target model for a sequence.

    Attributes:
        heads: source of each new token: head 1, 2, ...; 0 for the target model; `LOOKUP_HEAD`.
        path: accepted nodes of `tree`, root first; empty for the prefill.
        guesses: tokens of all nodes of `tree`, root first.
        seconds: time spent in each of `PARTS`; "verify" is the time of the whole pass.
    """

    tokens: list[int]
    heads: list[int]
    path: list[int]
    tree: Tree
    guesses: list[int]
    seconds: dict[str, float]

    @property
    def rejected(self) -> list[int]:
        """Most likely rejected draft tokens: a chain from the end of the path."""
        node, tokens = self.path[-1] if self.path else 0, []
        while self.tree.children[node]:
            node = self.tree.children[node][0]
            tokens.append(self.guesses[node])
        return tokens


@dataclass(frozen=True)
class NewPieces:
    """New tokens of one pass, the text of the draft tokens it rejected, and its duration.

    Attributes:
        alone: text of each token by itself, for log-probabilities.
    """

    pieces: list[Piece]
    rejected: list[str]
    ms: float
    alone: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """Last event of a request.

    Attributes:
        reason: "stop" (a token of `ends`), "stop_string", "length", "cancelled" or "error".
        rest: text that had been held back.
        shared_tokens: prompt tokens reused from the cache of an earlier request.
        first_token_s: seconds from the request to its first token; 0 if it has none.
    """

    reason: str
    rest: str
    prompt_tokens: int
    shared_tokens: int
    completion_tokens: int
    first_token_s: float
    error: SlimscopeError | None = None


Event: TypeAlias = Waiting | NewPieces | Finished
Deliver: TypeAlias = Callable[[Event], None]
