"""Text of tokens, as it becomes certain."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from backend.errors import ModelError


class Detokenizer:
    """Decode a stream of tokens into text, up to the first stop string.

    Held back until it is certain: a character split over several tokens (`DecodeStream`), and what
    may be the beginning of a stop string. Without a tokenizer there is no text."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, stops: Sequence[str] = ()
    ) -> None:
        self._tokenizer = getattr(tokenizer, "backend_tokenizer", None)  # the one in Rust
        if tokenizer is not None and not isinstance(self._tokenizer, Tokenizer):
            raise ModelError(
                "The tokenizer cannot decode a stream of tokens.",
                f"{type(tokenizer).__name__} has no tokenizer.json (a fast tokenizer).",
                "Convert it with transformers, or choose a model that has one.",
                "model",
            )
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stops = tuple(stop for stop in stops if stop)
        self._decoded, self._emitted = "", 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Decode one more token; return the text that has become certain, none after a stop."""
        if self.stopped or self._tokenizer is None:
            return ""
        piece = self._stream.step(self._tokenizer, token)
        if not piece:
            return ""
        seen = max(0, len(self._decoded) - max(map(len, self._stops), default=0))
        self._decoded += piece
        places = [place for stop in self._stops if (place := self._decoded.find(stop, seen)) >= 0]
        if places:
            self.stopped, self._decoded = True, self._decoded[: min(places)]
        prefixes = (stop[:n] for stop in self._stops for n in range(len(stop) - 1, 0, -1))
        begun = max((len(p) for p in prefixes if self._decoded.endswith(p)), default=0)
        return self._emit(len(self._decoded) - (0 if self.stopped else begun))

    def rest(self) -> str:
        """Return what was held back, once generation has ended."""
        return self._emit(len(self._decoded))

    def _emit(self, end: int) -> str:
        start, self._emitted = self._emitted, max(self._emitted, end)
        return self._decoded[start : self._emitted]
