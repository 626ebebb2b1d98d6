"""Answers token by token, as rows of JSON: a list with each message of a chat.

    {"decoder": "native (AVX2)", "threads": 2, "unused": true}
    {"ms": 41.2, "tokens": [["Hello", 0], [" there", 1]], "rejected": [" you"]}
    {"end": "limit", "rest": ""}

A drafter is unused where no draft tree pays. The number beside a token is the head that guessed it,
0 the base, -1: looked up. An end is a key of `ENDS`; `rest` was held back until it was certain.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MIN_TIMED_TOKENS = 32  # behind the first pass; the speed of fewer is that of milliseconds
ENDS = {
    "limit": "max tokens reached",
    "end": "ended by the model",
    "stop": "stop string reached",
    "error": "failed",
    "cancelled": "stopped",
}


@dataclass(frozen=True)
class TranscriptStep:
    """One pass of the model: its tokens as (text, head), guesses in vain, and milliseconds."""

    tokens: list[tuple[str, int]]
    rejected: list[str]
    ms: float


@dataclass
class Transcript:
    """The text of a side so far. The first pass is the prompt's."""

    passes: list[TranscriptStep] = field(default_factory=list)
    end: str = ""  # a key of `ENDS`; empty while it goes on
    rest: str = ""
    unused: bool = False  # its drafter drafts nothing, because no tree pays on this machine
    error: str = ""  # why it failed
    decoder: str = ""  # what computed it, in words
    threads: int = 0  # 0: not recorded

    @property
    def complete(self) -> bool:
        return self.end not in ("", "error")

    @property
    def text(self) -> str:
        return "".join(piece for piece, _ in self.tokens) + self.rest

    @property
    def tokens(self) -> list[tuple[str, int]]:
        """(text, head) of every token; the text may be empty inside of a character."""
        return [token for each in self.passes for token in each.tokens]

    @property
    def speed(self) -> float | None:
        """Tokens per second behind the prompt's pass; None with fewer than `MIN_TIMED_TOKENS`."""
        after = self.passes[1:]
        tokens, ms = sum(len(each.tokens) for each in after), sum(each.ms for each in after)
        return 1000 * tokens / ms if ms and tokens >= MIN_TIMED_TOKENS else None

    @property
    def accepted(self) -> float | None:
        """Mean accepted length; None before the second pass."""
        after = self.passes[1:]
        return sum(len(each.tokens) for each in after) / len(after) if after else None


def transcript_of(rows: Iterable[Any]) -> Transcript:
    """What these rows say; one that is damaged has failed there."""
    transcript = Transcript()
    try:
        for row in rows:
            if "end" in row:
                transcript.end, transcript.rest = str(row["end"]), str(row["rest"])
                transcript.error = str(row.get("error", ""))
            elif "tokens" in row:
                tokens = [(str(text), int(head)) for text, head in row["tokens"]]
                rejected = [str(text) for text in row["rejected"]]
                transcript.passes.append(TranscriptStep(tokens, rejected, float(row["ms"])))
            else:
                transcript.unused = transcript.unused or bool(row.get("unused"))
                transcript.decoder = str(row.get("decoder", transcript.decoder))
                transcript.threads = int(row.get("threads", transcript.threads))
    except (ValueError, TypeError, KeyError, AttributeError):
        transcript.end = "error"
    return transcript


def first_difference(one: str, other: str) -> int | None:
    """The character at which two texts part, from 0; None where one begins the other."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), None)
