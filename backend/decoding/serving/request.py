"""What is asked of the engine, and the events it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from backend.decoding.acceptance import Sampling
from backend.decoding.draft_tree import Proposer, Tree
from backend.errors import SlimscopeError
from backend.models.foreign_tokenizer import TextTokenizer

# The place of a part of the text, its hidden states [n, d], and the logits [m, V] after the last m
# of its tokens; may begin at 0 again
Observe: TypeAlias = Callable[[int, Tensor, Tensor], None]
Likely: TypeAlias = tuple[tuple[int, float], ...]  # tokens and their log-probabilities


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt, and how to go on with it.

    Attributes:
        prompt: token ids.
        max_tokens: 0 to read the prompt only, with `echo`.
        ends, stop: tokens and texts that end it.
        logprobs: of how many of the most likely tokens the log-probabilities are told, beside that
            of the token itself; None: of none. They are those of the model, before sampling.
        echo: the tokens of the prompt are told, too.
        person: whose turn it is; people take turns.
        drafter: drafts its tokens, and no others at the same time; `lookup`: so does the text.
        tokenizer: makes text of its tokens; None: that of the loop.
        observe: gets the states of all tokens that are read, and the logits of those that a token
            of the answer follows, as they are.
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
    observe: Observe | None = None


@dataclass(frozen=True)
class Piece:
    """A token and the text that became certain with it; `head` as in `DecodeStep`."""

    text: str
    head: int
    token: int
    logprob: float | None = None
    top: Likely = ()


@dataclass(frozen=True)
class Waiting:
    """How many are before this request, and in about how many seconds it begins."""

    place: int
    seconds: float


PARTS = ("draft", "verify", "accept", "cache")  # of a pass


@dataclass(frozen=True)
class DecodeStep:
    """The result of one pass of the target model for a sequence.

    Attributes:
        heads: source of each new token: head 1, 2, ...; 0 the target model; `LOOKUP_HEAD`.
        path: accepted nodes of `tree`, the root first; empty for the prefill.
        guesses: the tokens of all nodes of `tree`, the root's first.
        seconds: time in each of `PARTS`; "verify" is that of the whole pass.
    """

    tokens: list[int]
    heads: list[int]
    path: list[int]
    tree: Tree
    guesses: list[int]
    seconds: dict[str, float]

    @property
    def rejected(self) -> list[int]:
        """The most likely rejected draft tokens: a chain from the end of the path."""
        node, tokens = self.path[-1] if self.path else 0, []
        while self.tree.children[node]:
            node = self.tree.children[node][0]
            tokens.append(self.guesses[node])
        return tokens


@dataclass(frozen=True)
class NewPieces:
    """New tokens of one pass, the text of drafts it rejected, and how long it took. `alone`: the
    text of each token by itself, with log-probabilities."""

    pieces: list[Piece]
    rejected: list[str]
    ms: float
    alone: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """The last event. `reason`: stop (a token of `ends`), stop_string, length, cancelled, error.

    Attributes:
        rest: text that was held back.
        shared_tokens: of the prompt, that an earlier request had read.
        first_token_s: seconds from the request to its first token; 0 without one.
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
