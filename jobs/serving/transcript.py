"""Transcripts of answers, token by token, as JSON rows: one list per message of a chat.

    {"decoder": "native (AVX2)", "threads": 2, "unused": true}
    {"ms": 41.2, "tokens": [["Hello", 0], [" there", 1]], "rejected": [" you"]}
    {"end": "limit", "rest": ""}

`unused`: the drafter drafted nothing, because no draft tree pays. The number next to a token is the
drafter head that predicted it; 0: the model itself, -1: prompt lookup. `end` is a key of `ENDS`;
`rest` is text that was held back because a stop string might have begun in it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MIN_TIMED_TOKENS = 32  # after the first pass; fewer take milliseconds, too few to time
ENDS = {
    "limit": "max tokens reached",
    "end": "ended by the model",
    "stop": "stop string reached",
    "error": "failed",
    "cancelled": "stopped",
}


@dataclass(frozen=True)
class TranscriptStep:
    """One forward pass of the model: accepted tokens as (text, head), rejected tokens, and time in
    milliseconds."""

    tokens: list[tuple[str, int]]
    rejected: list[str]
    ms: float


@dataclass
class Transcript:
    """Answer of one side so far. The first pass reads the prompt.

    Attributes:
        end: key of `ENDS`; empty while the answer is generated.
        unused: True if the drafter drafts nothing, because no draft tree pays on this machine.
        error: reason of a failure.
        decoder: name of the decoder that computed it.
        threads: 0: not recorded.
    """

    passes: list[TranscriptStep] = field(default_factory=list)
    end: str = ""
    rest: str = ""
    unused: bool = False
    error: str = ""
    decoder: str = ""
    threads: int = 0

    @property
    def complete(self) -> bool:
        """True if the answer has ended without an error."""
        return self.end not in ("", "error")

    @property
    def text(self) -> str:
        """Text of the answer."""
        return "".join(piece for piece, _ in self.tokens) + self.rest

    @property
    def tokens(self) -> list[tuple[str, int]]:
        """(text, head) of every token; the text is empty for a token inside a character."""
        return [token for step in self.passes for token in step.tokens]

    @property
    def speed(self) -> float | None:
        """Tokens per second after the prompt's pass; None with fewer than `MIN_TIMED_TOKENS`."""
        steps = self.passes[1:]
        tokens, ms = sum(len(step.tokens) for step in steps), sum(step.ms for step in steps)
        return 1000 * tokens / ms if ms and tokens >= MIN_TIMED_TOKENS else None

    @property
    def accepted(self) -> float | None:
        """Mean accepted length; None before the second pass."""
        steps = self.passes[1:]
        return sum(len(step.tokens) for step in steps) / len(steps) if steps else None


def parse_transcript(rows: Iterable[Any]) -> Transcript:
    """Parse the rows of a transcript; the first damaged row ends it with an error."""
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


def first_difference(first: str, second: str) -> int | None:
    """Return the index of the first character at which two texts differ; None if one is a prefix of
    the other."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), None)
