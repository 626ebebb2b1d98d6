"""Tokenizer and chat template of an untrusted model, run in restricted child processes.

Both are programs of the model's author: an unusual prompt can make them take hours or gigabytes.
Each answer has a separate child process; if it exceeds its limits, only that answer ends.

    base       has imported transformers
    origin     fork of the base that has loaded the tokenizer and never runs it
    session    fork of the origin, for one answer at a time

The first part of this module runs in the calling process, the second part in the child."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from backend.errors import ModelError
from backend.limited import LimitedChild, LimitedChildError, OverrunError
from backend.models.facts import ModelFacts
from backend.models.sources.headers import OPTIONS
from backend.models.sources.tokenizer import check_ids

LOAD_S, LOAD_BYTES = 20.0, 2 * 2**30  # limits for loading a tokenizer
WORK_S = 2.0  # CPU seconds per conversation; a typical one takes a millisecond
LETTERS_PER_S, TOKENS_PER_S = 100_000, 20_000  # extra CPU time for long texts
STEP_S = 0.5  # CPU seconds per token; other answers of the model wait meanwhile
WORK_BYTES = 2**29  # memory of a session, in addition to that of the origin
TOKEN_LETTERS = 2**14  # maximum characters that one token adds to the text
IDLE_SESSIONS = 4

TEMPLATE, ENCODER, DECODER = "chat template", "tokenizer", "decoder of the tokenizer"
FILES = {
    TEMPLATE: "chat_template in tokenizer_config.json",
    ENCODER: "tokenizer.json",
    DECODER: "decoder in tokenizer.json",
}


_bases: list[LimitedChild] = []  # at most one
_starting = threading.Lock()
os.register_at_fork(after_in_child=_bases.clear)


def forked_base(memory: int) -> LimitedChild:
    """Fork a child that has imported transformers. Raises LimitedChildError: it does not start."""
    with _starting:
        if _bases:
            with suppress(LimitedChildError):  # the system has killed the base
                return LimitedChild(memory, _bases[0])
        _bases[:] = [LimitedChild(LOAD_BYTES)]
        _bases[0].call(f"{__name__}:forget", seconds=LOAD_S)
        return LimitedChild(memory, _bases[0])


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text."""

    input_ids: list[int]


class ForeignTokenizer:
    """A tokenizer that runs in a restricted child process, with the part of transformers' interface
    that serving needs. Its methods work only within a `session`."""

    def __init__(self, folder: Path, facts: ModelFacts) -> None:
        self._folder, self.title = folder, facts.title
        self._lock, self._idle = threading.Lock(), list[LimitedChild]()
        self._child: LimitedChild | None = None
        about = self._start()
        check_ids(folder, about["largest"], facts.vocabulary)
        self.chat_template: bool = about["chat_template"]
        self.bos_token_id: int | None = about["bos_token_id"]
        self.eos_token_id: int | None = about["eos_token_id"]
        self.all_special_ids: list[int] = about["all_special_ids"]
        self.all_special_tokens: list[str] = about["all_special_tokens"]
        self._size, self._fast = int(about["size"]), bool(about["fast"])
        self._streams = count()

    def __len__(self) -> int:
        return self._size

    def _start(self) -> dict[str, Any]:
        """Load the tokenizer in a new origin."""
        try:
            self._origin = forked_base(LOAD_BYTES)
            about: dict[str, Any] = self._origin.call(
                f"{__name__}:load", str(self._folder), seconds=LOAD_S
            )
        except LimitedChildError as error:
            reason = f"It takes {error}." if isinstance(error, OverrunError) else str(error)
            raise ModelError(
                f"{self.title} cannot be loaded.",
                f"transformers cannot read its tokenizer: {reason}",
                "Copy the tokenizer of the original model.",
                "model",
            ) from error
        return about

    @contextmanager
    def session(self) -> Iterator[ForeignTokenizer]:
        """Provide a tokenizer that works until it exceeds its limits. Raises ModelError: it cannot
        be loaded."""
        working = copy(self)
        child = working._child = self._enter()
        working._streams = count()
        try:
            yield working
        finally:
            self._leave(child)

    def _enter(self) -> LimitedChild:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            try:
                return LimitedChild(WORK_BYTES, self._origin)
            except LimitedChildError:  # the system has killed the origin
                self._start()
                return LimitedChild(WORK_BYTES, self._origin)

    def _leave(self, child: LimitedChild) -> None:
        with suppress(LimitedChildError):
            if child.is_alive:
                child.call(f"{__name__}:forget", seconds=STEP_S)
        with self._lock:
            if child.is_alive and len(self._idle) < IDLE_SESSIONS:
                self._idle.append(child)
                return
        child.close()

    def close(self) -> None:
        """End the child processes that no session uses."""
        with self._lock:
            for child in self._idle:
                child.close()
            self._idle.clear()

    def _call(self, part: str, function: str, *arguments: Any, seconds: float = WORK_S) -> Any:
        assert self._child is not None
        if not self._child.is_alive:
            raise ModelError(f"The tokenizer of {self.title} has ended.", "", "Ask again.")
        try:
            return self._child.call(f"{__name__}:{function}", *arguments, seconds=seconds)
        except LimitedChildError as error:
            raise unusable(part, self.title, error) from error

    # in a session ---------------------------------------------------------------------------------

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Convert a conversation to text that ends where the model's answer begins."""
        return str(self._call(TEMPLATE, "render", [dict(message) for message in messages]))

    def __call__(self, text: str, **options: Any) -> Encoded:
        seconds = WORK_S + len(text) / LETTERS_PER_S
        return Encoded(self._call(ENCODER, "encode", text, options, seconds=seconds))

    def batch_decode(self, rows: Sequence[Sequence[int]], **options: Any) -> list[str]:
        seconds = STEP_S + sum(map(len, rows)) / TOKENS_PER_S
        texts: list[str] = self._call(DECODER, "decode", rows, options, seconds=seconds)
        return texts

    def stream(self) -> Callable[[int], str | None]:
        """Return an incremental decoder, see `DecodeStream`: token id -> new text."""
        if not self._fast:
            raise no_stream(type(self).__name__)
        number = next(self._streams)

        def step(token: int) -> str | None:
            text: str | None = self._call(DECODER, "step", number, token, seconds=STEP_S)
            return text

        return step

    def save_pretrained(self, folder: str | Path) -> None:
        self._call(ENCODER, "save", str(folder), seconds=LOAD_S)


TextTokenizer: TypeAlias = PreTrainedTokenizerBase | ForeignTokenizer


def session_of(tokenizer: TextTokenizer) -> AbstractContextManager[TextTokenizer]:
    """Open a session of a foreign tokenizer; return any other tokenizer unchanged."""
    if isinstance(tokenizer, ForeignTokenizer):
        return tokenizer.session()
    return nullcontext(tokenizer)


def stream_of(tokenizer: TextTokenizer) -> Callable[[int], str | None]:
    """Return an incremental decoder: token id -> new text. Raises ModelError: the tokenizer has
    none."""
    if isinstance(tokenizer, ForeignTokenizer):
        return tokenizer.stream()
    backend = getattr(tokenizer, "backend_tokenizer", None)  # the Rust implementation
    if not isinstance(backend, Tokenizer):
        raise no_stream(type(tokenizer).__name__)
    decoder = DecodeStream(skip_special_tokens=True)
    return lambda token: decoder.step(backend, token)


def no_stream(kind: str) -> ModelError:
    """Build the error for a tokenizer class without an incremental decoder."""
    return ModelError(
        "The tokenizer cannot decode a stream of tokens.",
        f"{kind} has no tokenizer.json (a fast tokenizer).",
        "Convert the tokenizer with transformers, or choose a model with a fast tokenizer.",
        "model",
    )


def unusable(part: str, title: str, error: Exception) -> ModelError:
    """Build the error for a part of the model `title` that failed in a child process."""
    do = f"Use another model, or fix {FILES[part]}."
    if not isinstance(error, OverrunError):
        reason = str(error).rstrip(".") or type(error).__name__
        return ModelError(f"The {part} of {title} cannot be used.", f"{reason[:300]}.", do, "model")
    why = "It may make too much text." if "memory" in str(error) else "It may loop."
    return ModelError(f"The {part} of {title} took {error}.", why, do, "model")


# in the child -------------------------------------------------------------------------------------

_loaded: list[PreTrainedTokenizerBase] = []  # at most one
_decoders: dict[int, Callable[[int], str | None]] = {}


def load(folder: str) -> dict[str, Any]:
    """Load the tokenizer in a folder and return its properties."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **OPTIONS)
    _loaded[:] = [tokenizer]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokenizer.decode(tokenizer.encode("A text."))  # fails for some damaged configs
    return {
        "largest": max(set(tokenizer.get_vocab().values()) - special, default=-1),
        "size": len(tokenizer),
        "fast": isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer),
        "chat_template": bool(tokenizer.chat_template),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "all_special_ids": list(tokenizer.all_special_ids),
        "all_special_tokens": list(tokenizer.all_special_tokens),
    }


def render(messages: list[dict[str, str]]) -> str:
    """Apply the chat template."""
    return str(_loaded[0].apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def encode(text: str, options: dict[str, Any]) -> list[int]:
    """Convert a text to token ids."""
    return list(_loaded[0](text, **options).input_ids)


def decode(rows: list[list[int]], options: dict[str, Any]) -> list[str]:
    """Convert rows of token ids to texts."""
    return [str(_loaded[0].decode(row, **options)) for row in rows]


def step(stream: int, token: int) -> str | None:
    """Decode the next token of a stream; None while its text is incomplete."""
    if stream not in _decoders:
        _decoders[stream] = stream_of(_loaded[0])
    text = _decoders[stream](token)
    if len(text or "") > TOKEN_LETTERS:
        raise ValueError(f"The text of a token has more than {TOKEN_LETTERS} characters")
    return text


def forget() -> None:
    """Discard the decoders before the next answer."""
    _decoders.clear()


def save(folder: str) -> None:
    """Save the tokenizer."""
    _loaded[0].save_pretrained(folder)
