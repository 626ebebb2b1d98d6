"""Answers to one prompt, with each token tinted by the head that drafted it, and the stream of
answers in progress."""

import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.decoding.limits import LOOKUP_HEAD
from backend.errors import ConflictError, SlimscopeError
from backend.queue import conversations
from backend.queue.actor import Actor, guest_of
from backend.queue.conversations import Turn
from backend.queue.permissions import require
from backend.store.session import writing
from jobs.chat import chat_request, display_order, is_hidden
from jobs.serving.client import EventStream, answer_interrupted
from jobs.serving.openai_format import error_headers, event
from jobs.serving.transcript import ENDS, Transcript, first_difference, parse_transcript
from ui.format import NBSP, threads
from ui.openai_api import (
    CLIENT_GONE,
    endpoint_request,
    openai_error,
    serving_response,
    transcript_rows,
)
from ui.pages.playground.heads import column_heads
from ui.runs.html import model_name
from ui.security.auth import current_user
from ui.templates import fragments

HTML = fragments("pages/playground/page.html")
LETTERS = "ABCD"
MIN_GAIN = 0.05  # drafted tokens per step
MAX_TINTED = 512  # tokens; the rest is plain
MAX_TINTS = 6  # further heads share the last
BASE = 0  # the "head" of tokens that the base model chose
TINTS = {BASE: "", LOOKUP_HEAD: "head-looked"}  # CSS classes
SOURCES = {BASE: "chosen by the base model", LOOKUP_HEAD: "from prompt lookup"}
_written: dict[tuple[int, int], "_Writing"] = {}  # (prompt, side) -> answer in progress


@dataclass(frozen=True)
class Span:
    """A piece of text: its HTML element `tag` ("" for plain text) and CSS class `css`."""

    text: str
    tag: str = ""
    css: str = ""
    title: str = ""


def token_spans(transcript: Transcript, differs: int | None = None) -> list[Span]:
    """Spans of the tokens. `differs`: first character that differs from another text."""
    spans: list[Span] = []
    start = tokens = 0
    for number, step in enumerate(transcript.passes):
        for text, head in step.tokens:
            marked = differs is not None and start <= differs < start + len(text)
            plain = tokens >= MAX_TINTED or not text
            source = SOURCES.get(head, f"drafted by head {head}")
            title = f"{source}, step {number}, {step.ms:.1f} ms"
            tint = TINTS.get(head, f"head-{min(head, MAX_TINTS)}")
            token = Span(text, "mark" if marked else "span", tint, title)
            spans.append(Span(text) if plain else token)
            start, tokens = start + len(text), tokens + 1
        rejected = next(iter(step.rejected), "")  # later tokens were rejected with it
        if tokens < MAX_TINTED and rejected.strip():
            spans.append(Span(rejected, "s", title="rejected draft token"))
    return [*spans, Span(transcript.rest)]


def tints(sources: Collection[int]) -> list[tuple[str, str]]:
    """(CSS class, name) of the tints of prompt lookup and of the heads up to the last one in
    `sources`."""
    heads = range(1, min(max(sources), MAX_TINTS) + 1)
    lookup = [(TINTS[LOOKUP_HEAD], "prompt lookup")] if LOOKUP_HEAD in sources else []
    return [*((f"head-{head}", f"head {head}") for head in heads), *lookup]


@dataclass(frozen=True)
class Answer:
    """One column: `side` of the config, from 1, and its letter ("" if alone); `model` is None where
    hidden; `head`: size, bits and speed of the model, in the first turn; `status` says what it
    waits for; `begins`: the page is to ask for it; `text` is that of a finished answer, else ""."""

    side: int
    letter: str
    model: Markup | None
    head: str
    status: str
    begins: bool
    facts: list[str]
    spans: list[Span]
    text: str


def chat_answers(turns: Sequence[Turn], actor: Actor) -> list[Answer]:
    """Those of the last of these turns, as `actor` may see them. Who asked has them written, as
    soon as they see the page; also again, where their process ended before it did."""
    turn = turns[-1]
    order, hidden = display_order(turn), is_hidden(turns, actor.name)
    texts = {side: parse_transcript(each.transcript) for side, each in turn.answers.items()}
    begins = not may_not_begin(turn, actor)
    status = "Starting" if begins else "Being answered"
    heads = {} if hidden or len(turns) > 1 else column_heads(turn.names)
    first = texts.get(order[0])
    shown = []
    for side, letter in zip(order, LETTERS, strict=False):
        text = texts.get(side)
        found = text or Transcript()
        other = first if text and side != order[0] else None
        differs = first_difference(other.text, found.text) if other else None
        apart = []
        if other and other.end and found.end and not (other.error or found.error):
            if other.text == found.text:
                apart = ["identical to A"]
            elif differs != 0:  # otherwise the texts have nothing in common
                shorter = min(len(other.text), len(found.text))
                place = 1 + (shorter if differs is None else differs)
                apart = [f"first difference from A at character {place}"]
        shown.append(
            Answer(
                side,
                letter if len(order) > 1 else "",
                None if hidden else model_name(turn.names[side - 1]),
                heads.get(turn.names[side - 1], ""),
                "" if text else status,
                begins and not text,
                [*facts(found, hidden), *apart],
                [Span(found.text)] if hidden else token_spans(found, differs or None),
                found.text if found.complete else "",
            )
        )
    return shown


def may_not_begin(turn: Turn, actor: Actor) -> str:
    """The reason why an actor may not have a prompt answered; "" if allowed."""
    own = actor.role == "host" or guest_of(turn.prompt.author) == actor.name
    return "" if own else "Somebody else has asked."


def is_written(turn: Turn) -> bool:
    """Return True if an answer to a prompt is being generated."""
    return any((turn.number, side) in _written for side in turn.unanswered)


def stop(turn: Turn) -> None:
    """Stop the answers to a prompt at their next token."""
    for side in turn.unanswered:
        if writing_now := _written.get((turn.number, side)):
            writing_now.stopped = True


def facts(transcript: Transcript, hidden: bool) -> list[str]:
    """Metrics of one answer."""
    ended = [ENDS[transcript.end]] if transcript.end in ENDS else []
    if not transcript.passes:
        return ended
    known = [f"{len(transcript.tokens)} tokens"]
    accepted = transcript.accepted or 1.0
    rejected = any(each.rejected for each in transcript.passes)
    if not hidden:  # they would reveal the model
        if transcript.speed:
            on = f" on {threads(transcript.threads)}" if transcript.threads else ""
            known.append(f"{transcript.speed:.1f}{NBSP}tokens/s{on}")
        known += [f"{accepted:.2f} tokens per step"] if accepted > 1 else []
        if transcript.unused:
            known.append("drafter unused: no draft tree is faster on this machine")
        elif transcript.speed and rejected and accepted < 1 + MIN_GAIN:
            known.append("almost no draft token accepted")
    return [*known, *ended]


def heads_of(texts: Sequence[Transcript]) -> set[int]:
    """Heads that drafted tokens of the texts."""
    return {head for text in texts for _, head in text.tokens} - {BASE}


# the stream ---------------------------------------------------------------------------------------


async def answer(request: Request) -> Response:
    """Handle POST `?prompt=57&side=1`: answer the prompt with the model of this side, and stream
    the rows of its transcript as server-sent events. The answer is stored when it ends, even if the
    client disconnects. Further requests follow it, or read it where it is stored."""
    actor = current_user(request)
    try:
        number, side = (int(request.query_params.get(n, "")[:9]) for n in ("prompt", "side"))
        in_progress = _written.get((number, side))  # may be stored while the turns are read
        turns = await run_in_threadpool(conversations.turns_to, number)
        require(actor, "have this answered", may_not_begin(turns[-1], actor))
        in_progress = in_progress or _written.get((number, side))
        hidden = is_hidden(turns, actor.name)
        if in_progress:
            return EventStream(in_progress.follow(hidden), AsyncExitStack())
        if stored := turns[-1].answers.get(side):
            rows = [event(shown_row(row, hidden)) for row in stored.transcript]
            return Response(b"".join(rows), media_type="text/event-stream")
        if side not in turns[-1].unanswered:
            raise ConflictError(f"The prompt has no side {side}.")
    except ValueError:
        return openai_error(ConflictError("A prompt and a side are missing."), 422)
    except SlimscopeError as error:
        return openai_error(error)
    return await _Writing(turns, side, actor).begin(request)


def shown_row(row: dict[str, Any], hidden: bool) -> dict[str, Any]:
    """A row of a transcript without what tells its model, where that is `hidden`."""
    if not hidden:
        return row
    if "tokens" in row:
        tokens = [[text, BASE] for text, _ in row["tokens"]]
        return {"ms": 0, "tokens": tokens, "rejected": []}
    if row.get("waits", "").startswith("Loading"):
        return row | {"waits": "Loading a model"}
    return {name: row[name] for name in ("waits", "about", "end", "rest") if name in row}


class _Writing:
    """One answer that is being written, and is stored at its end, whatever ends it; but for a
    refusal that time mends: the page asks again."""

    def __init__(self, turns: Sequence[Turn], side: int, actor: Actor) -> None:
        self.turns, self.side, self.actor = turns, side, actor
        self.rows: list[dict[str, Any]] = []
        self.refused = self.stopped = self.ended = False
        self.grown = anyio.Event()  # replaced whenever a row is added

    async def begin(self, request: Request) -> Response:
        """The stream; where it cannot begin, the reason."""
        _written[self.turns[-1].number, self.side] = self
        async with AsyncExitStack() as opened:
            opened.push_async_callback(self._end)
            try:
                body = chat_request(self.turns, self.side)
                response = await opened.enter_async_context(
                    serving_response(request, self.actor, *endpoint_request(body))
                )
                if response is None:
                    return CLIENT_GONE
                if response.status_code != 200:
                    content = json.loads(await response.aread())
                    self._failed(content["error"]["message"], response.status_code == 429)
                    wait = {"retry-after": response.headers.get("retry-after", "5")}
                    return JSONResponse(content, response.status_code, wait)
            except SlimscopeError as error:
                self._failed(str(error), bool(error_headers(error)))
                return openai_error(error)
            return EventStream(self._stream(transcript_rows(response)), opened.pop_all())

    async def _stream(self, found: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
        hidden = is_hidden(self.turns, self.actor.name)
        async for row in found:
            if "waits" not in row:
                self._add(row)
            yield event(shown_row(row, hidden))
            if self.stopped:
                return
        if not self.rows or "end" not in self.rows[-1]:
            self._failed(str(answer_interrupted()), False)

    async def follow(self, hidden: bool) -> AsyncIterator[bytes]:
        """Stream all rows, from the first on, until the answer is stored."""
        sent = 0
        while True:
            grown, ended = self.grown, self.ended
            while sent < len(self.rows):
                sent += 1
                yield event(shown_row(self.rows[sent - 1], hidden))
            if ended:
                return
            await grown.wait()

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._wake()

    def _wake(self) -> None:
        self.grown.set()
        self.grown = anyio.Event()

    def _failed(self, why: str, refused: bool) -> None:
        self._add({"end": "error", "rest": "", "error": why})
        self.refused = refused

    async def _end(self) -> None:
        if not self.rows or "end" not in self.rows[-1]:  # a disconnect stops the answer
            self._add({"end": "cancelled", "rest": ""})
        try:
            with anyio.CancelScope(shield=True):
                if not self.refused:
                    await run_in_threadpool(self._store)
        finally:
            del _written[self.turns[-1].number, self.side]
            self.ended = True
            self._wake()

    def _store(self) -> None:
        text, prompt = parse_transcript(self.rows).text, self.turns[-1].prompt
        with writing(durable=True) as session:
            conversations.save_answer(prompt, self.side, text, self.rows, session)
