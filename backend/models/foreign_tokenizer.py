"""Tokenizers and chat templates of foreign models, run in limited child processes.

A tokenizer and a chat template are programs of the model's author: an unusual prompt can make them
run for hours or fill the memory. Each answer therefore uses its own child process, and exceeding
the limits ends only that answer.

    base       has imported transformers
    origin     a fork of the base that has loaded the tokenizer and never runs it
    session    a fork of the origin that serves one answer, and later the next

The first half of this module runs in the calling process, the second half in the children."""

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
from backend.models.sources.tokenizer import check_token_ids

LOAD_S, LOAD_BYTES = 20.0, 2 * 2**30  # limits for loading a tokenizer
WORK_S = 2.0  # CPU seconds for a conversation, which usually takes a millisecond
CHARACTERS_PER_S, TOKENS_PER_S = 100_000, 20_000  # long texts get more time at these rates
STEP_S = 0.5  # CPU seconds to decode a token, while other answers of the model wait
WORK_BYTES = 2**29  # memory of a session, in addition to that of the origin
MAX_STEP_CHARACTERS = 2**14  # maximum text that a single token may add
MAX_IDLE_SESSIONS = 4

TEMPLATE, ENCODER, DECODER = "chat template", "tokenizer", "decoder of the tokenizer"
FILES = {  # part of a tokenizer -> where the author can fix it
    TEMPLATE: "chat_template in tokenizer_config.json",
    ENCODER: "tokenizer.json",
    DECODER: "decoder in tokenizer.json",
}

_bases: list[LimitedChild] = []  # at most one
_starting = threading.Lock()
os.register_at_fork(after_in_child=_bases.clear)


def fork_base_process(memory: int) -> LimitedChild:
    """Fork a child that has imported transformers. `memory`: its limit in bytes. Raises
    LimitedChildError: no process could be started."""
    with _starting:
        if _bases:
            with suppress(LimitedChildError):  # the system has killed the base
                return LimitedChild(memory, _bases[0])
        _bases[:] = [LimitedChild(LOAD_BYTES)]
        _bases[0].call(f"{__name__}:reset", seconds=LOAD_S)
        return LimitedChild(memory, _bases[0])


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text."""

    input_ids: list[int]


class ForeignTokenizer:
    """A tokenizer in limited child processes, with the subset of transformers' interface that
    serving uses. Only the tokenizer of a `session` can process text."""

    def __init__(self, folder: Path, facts: ModelFacts) -> None:
        self._folder, self.title = folder, facts.title
        self._lock, self._idle = threading.Lock(), list[LimitedChild]()
        self._child: LimitedChild | None = None
        properties = self._start()
        check_token_ids(folder, properties["largest"], facts.vocabulary)
        self.chat_template: bool = properties["chat_template"]
        self.bos_token_id: int | None = properties["bos_token_id"]
        self.eos_token_id: int | None = properties["eos_token_id"]
        self.all_special_ids: list[int] = properties["all_special_ids"]
        self.all_special_tokens: list[str] = properties["all_special_tokens"]
        self._size, self._fast = int(properties["size"]), bool(properties["fast"])
        self._class_name = str(properties["class"])
        self._streams = count()

    def __len__(self) -> int:
        return self._size

    def _start(self) -> dict[str, Any]:
        """Load the tokenizer in a new origin, and return its properties."""
        try:
            self._origin = fork_base_process(LOAD_BYTES)
            properties: dict[str, Any] = self._origin.call(
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
        return properties

    @contextmanager
    def session(self) -> Iterator[ForeignTokenizer]:
        """Open a tokenizer for one answer. Its methods raise ModelError after it has exceeded a
        limit. Raises ModelError: the tokenizer cannot be loaded."""
        tokenizer = copy(self)
        child = tokenizer._child = self._acquire()
        tokenizer._streams = count()
        try:
            yield tokenizer
        finally:
            self._release(child)

    def _acquire(self) -> LimitedChild:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            try:
                return LimitedChild(WORK_BYTES, self._origin)
            except LimitedChildError:  # the system has killed the origin
                self._start()
                return LimitedChild(WORK_BYTES, self._origin)

    def _release(self, child: LimitedChild) -> None:
        with suppress(LimitedChildError):
            if child.is_alive:
                child.call(f"{__name__}:reset", seconds=STEP_S)
        with self._lock:
            if child.is_alive and len(self._idle) < MAX_IDLE_SESSIONS:
                self._idle.append(child)
                return
        child.close()

    def close(self) -> None:
        """End the idle session processes and the process that they were forked from. The next
        session starts another."""
        with self._lock:
            for child in (*self._idle, self._origin):
                child.close()
            self._idle.clear()

    def _call(self, part: str, function: str, *arguments: Any, seconds: float = WORK_S) -> Any:
        assert self._child is not None
        if not self._child.is_alive:
            raise ModelError(
                f"The tokenizer of {self.title} has ended.", "", "Send the prompt again."
            )
        try:
            return self._child.call(f"{__name__}:{function}", *arguments, seconds=seconds)
        except LimitedChildError as error:
            raise tokenizer_error(part, self.title, error) from error

    # in a session ---------------------------------------------------------------------------------

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Render a conversation as text that ends where the model's answer begins."""
        return str(self._call(TEMPLATE, "render", [dict(message) for message in messages]))

    def __call__(self, text: str, **options: Any) -> Encoded:
        """Encode a text; see transformers."""
        seconds = WORK_S + len(text) / CHARACTERS_PER_S
        return Encoded(self._call(ENCODER, "encode", text, options, seconds=seconds))

    def batch_decode(self, rows: Sequence[Sequence[int]], **options: Any) -> list[str]:
        """Decode rows of tokens; see transformers."""
        seconds = STEP_S + sum(map(len, rows)) / TOKENS_PER_S
        texts: list[str] = self._call(DECODER, "decode", rows, options, seconds=seconds)
        return texts

    def stream(self) -> Callable[[int], str | None]:
        """Return a function that decodes one token after another; see `DecodeStream`."""
        if not self._fast:
            raise no_stream_error(self._class_name)
        stream = next(self._streams)

        def step(token: int) -> str | None:
            text: str | None = self._call(DECODER, "step", stream, token, seconds=STEP_S)
            return text

        return step

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the tokenizer; see transformers."""
        self._call(ENCODER, "save", str(folder), seconds=LOAD_S)


TextTokenizer: TypeAlias = PreTrainedTokenizerBase | ForeignTokenizer


def tokenizer_session(tokenizer: TextTokenizer) -> AbstractContextManager[TextTokenizer]:
    """Open a tokenizer for one answer; other tokenizers are returned unchanged."""
    if isinstance(tokenizer, ForeignTokenizer):
        return tokenizer.session()
    return nullcontext(tokenizer)


def stream_decoder(tokenizer: TextTokenizer) -> Callable[[int], str | None]:
    """Return a function that decodes one token after another; it returns None until a text is
    complete. Raises ModelError: the tokenizer cannot decode a stream."""
    if isinstance(tokenizer, ForeignTokenizer):
        return tokenizer.stream()
    backend = getattr(tokenizer, "backend_tokenizer", None)  # the tokenizer in Rust
    if not isinstance(backend, Tokenizer):
        raise no_stream_error(type(tokenizer).__name__)
    decoder = DecodeStream(skip_special_tokens=True)
    return lambda token: decoder.step(backend, token)


def no_stream_error(class_name: str) -> ModelError:
    """Return the error for a tokenizer that cannot decode a stream of tokens."""
    return ModelError(
        "The tokenizer cannot decode a stream of tokens.",
        f"{class_name} has no tokenizer.json (a fast tokenizer).",
        "Convert it with transformers, or choose a model that has one.",
        "model",
    )


def tokenizer_error(part: str, title: str, error: Exception) -> ModelError:
    """Return the error for a failure in a child.

    Args:
        part: the failed part, a key of `FILES`.
        title: title of the model.
        error: the exception in the child.
    """
    do = f"Use another model, or fix {FILES[part]}."
    if not isinstance(error, OverrunError):
        why = str(error).rstrip(".") or type(error).__name__
        return ModelError(f"The {part} of {title} cannot be used.", f"{why[:300]}.", do, "model")
    why = "It may produce too much text." if "memory" in str(error) else "It may loop."
    return ModelError(f"The {part} of {title} took {error}.", why, do, "model")


# in the child -------------------------------------------------------------------------------------

_loaded: list[PreTrainedTokenizerBase] = []  # at most one
_decoders: dict[int, Callable[[int], str | None]] = {}


def load(folder: str) -> dict[str, Any]:
    """Load the tokenizer in a folder, and return its properties."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **OPTIONS)
    _loaded[:] = [tokenizer]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokenizer.decode(tokenizer.encode("A text."))  # fails for some invalid configs
    return {
        "largest": max(set(tokenizer.get_vocab().values()) - special, default=-1),
        "size": len(tokenizer),
        "class": type(tokenizer).__name__,
        "fast": isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer),
        "chat_template": bool(tokenizer.chat_template),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "all_special_ids": list(tokenizer.all_special_ids),
        "all_special_tokens": list(tokenizer.all_special_tokens),
    }


def render(messages: list[dict[str, str]]) -> str:
    """Render a conversation with the chat template."""
    return str(_loaded[0].apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def encode(text: str, options: dict[str, Any]) -> list[int]:
    """Return the token ids of a text."""
    return list(_loaded[0](text, **options).input_ids)


def decode(rows: list[list[int]], options: dict[str, Any]) -> list[str]:
    """Return the texts of rows of token ids."""
    return [str(_loaded[0].decode(row, **options)) for row in rows]


def step(stream: int, token: int) -> str | None:
    """Decode the next token of a stream; None until a text is complete."""
    if stream not in _decoders:
        _decoders[stream] = stream_decoder(_loaded[0])
    text = _decoders[stream](token)
    if len(text or "") > MAX_STEP_CHARACTERS:
        raise ValueError(f"The text of a token has more than {MAX_STEP_CHARACTERS} characters")
    return text


def reset() -> None:
    """Remove the state of an answer before the next one."""
    _decoders.clear()


def save(folder: str) -> None:
    """Save the tokenizer."""
    _loaded[0].save_pretrained(folder)
