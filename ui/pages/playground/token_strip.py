"""A text as the tokens it was generated in: tinted by the head that drafted each, rejected draft
tokens outlined, the first token that differs from another text marked."""

from collections.abc import Collection
from dataclasses import dataclass

from backend.decoding.limits import LOOKUP_HEAD
from jobs.serving.transcript import Transcript

MAX_TINTED = 512  # tokens; the rest is plain
MAX_TINTS = 6  # further heads share the last
BASE = 0  # the "head" of tokens that the base model chose
LOOKUP_TINT = "head-looked"
SOURCES = {BASE: "chosen by the base model", LOOKUP_HEAD: "from prompt lookup"}


@dataclass(frozen=True)
class Span:
    """Piece of the text: its HTML element `tag` ("" for plain text) and CSS class `css`."""

    text: str
    tag: str = ""
    css: str = ""
    title: str = ""


def token_spans(transcript: Transcript, differs: int | None = None) -> list[Span]:
    """`differs`: first character that differs from another text."""
    spans: list[Span] = []
    start = tokens = 0
    for number, step in enumerate(transcript.passes):
        for text, head in step.tokens:
            marked = differs is not None and start <= differs < start + len(text)
            plain = tokens >= MAX_TINTED or not text
            source = SOURCES.get(head, f"drafted by head {head}")
            title = f"{source}, step {number}, {step.ms:.1f} ms"
            token = Span(text, "mark" if marked else "span", _tint(head), title)
            spans.append(Span(text) if plain else token)
            start, tokens = start + len(text), tokens + 1
        rejected = next(iter(step.rejected), "")  # those behind it were rejected with it
        if tokens < MAX_TINTED and rejected.strip():
            spans.append(Span(rejected, "s", title="rejected draft token"))
    return [*spans, Span(transcript.rest)]


def _tint(head: int) -> str:
    if head == BASE:
        return ""
    return LOOKUP_TINT if head == LOOKUP_HEAD else f"head-{min(head, MAX_TINTS)}"


def tints(sources: Collection[int]) -> list[tuple[str, str]]:
    """(CSS class, name) of the tints of the heads up to the last of `sources`, and of lookup."""
    heads = range(1, min(max(sources), MAX_TINTS) + 1)
    lookup = [(LOOKUP_TINT, "prompt lookup")] if LOOKUP_HEAD in sources else []
    return [*((_tint(head), f"head {head}") for head in heads), *lookup]
