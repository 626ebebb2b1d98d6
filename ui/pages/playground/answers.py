"""Answers of one run as the page shows them, and their new tokens while they are being written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.errors import SlimscopeError
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import ACTIVE, State
from backend.store.tables import Job
from jobs.generate.arena import display_order, is_hidden, names_of
from jobs.generate.transcript import ENDS, Transcript, first_difference, read_transcript
from ui.runs.html import model_name
from ui.runs.token_strip import BASE, Span, token_spans
from ui.security.auth import current_user
from ui.templates import fragments
from ui.widgets.html import WIDGETS

HTML = fragments("pages/playground/page.html")
LETTERS = "ABCD"
START_S = 6.0  # of the playground's process
PATIENCE_MS = 20_000
DIGITS = 9  # of a number of passes
MIN_GAIN = 0.05  # tokens per step beyond the one without drafting


@dataclass(frozen=True)
class Answer:
    """One column: `side` of the config, from 1, and its letter ("" if alone); `model` is None where
    hidden; `spans` shows so many `passes`; `text` is that of a finished answer, else ""."""

    side: int
    letter: str
    model: Markup | None
    status: Markup
    facts: list[str]
    spans: list[Span]
    passes: int
    text: str


def answers_of(job: Job, voter: str) -> list[Answer]:
    """Columns as `voter` may see them, compared with the first."""
    hidden, sides = is_hidden(job, voter), display_order(job)
    texts = {side: read_transcript(job.run, side) for side in sides}
    return [
        _answer(job, side, letter if len(sides) > 1 else "", texts[side], hidden,
                texts[sides[0]] if side != sides[0] else None)
        for side, letter in zip(sides, LETTERS, strict=False)
    ]  # fmt: skip


def _answer(
    job: Job, side: int, letter: str, transcript: Transcript, hidden: bool, first: Transcript | None
) -> Answer:
    ended = job.state not in ACTIVE
    differs = first_difference(first.text, transcript.text) if first and ended else None
    return Answer(
        side,
        letter,
        None if hidden else model_name(names_of(job)[side - 1]),
        status(job, transcript, hidden),
        [*facts(transcript, hidden), *(_difference(first, transcript, differs) if ended else [])],
        spans_of(transcript, hidden, differs or None),
        len(transcript.passes),
        transcript.text if transcript.complete else "",
    )


def spans_of(
    transcript: Transcript, hidden: bool, differs: int | None = None, after: int = 0
) -> list[Span]:
    if hidden:
        passes = transcript.passes[after:]
        return [Span("".join(text for step in passes for text, _ in step.tokens) + transcript.rest)]
    return token_spans(transcript, differs, after)


def status(job: Job, transcript: Transcript, hidden: bool) -> Markup:
    if job.state not in ACTIVE or transcript.passes or transcript.end:
        return Markup()
    if job.desired != "run":
        return HTML.status("Stopping")
    if transcript.waits:
        text = "Loading a model" if hidden and transcript.about else transcript.waits
        return HTML.status(text, transcript.about, transcript.since)
    if job.state != State.QUEUED:
        return HTML.status("Reading the prompt")
    if now_ms() - job.queued_at < PATIENCE_MS:  # a process that is there takes it at once
        return HTML.status("Starting", START_S, job.queued_at)
    return HTML.status("Waiting for its turn")


def facts(transcript: Transcript, hidden: bool) -> list[str]:
    if not transcript.passes:
        return []
    known = [f"{len(transcript.tokens)} tokens"]
    accepted = transcript.accepted or 1.0
    rejected = any(each.rejected for each in transcript.passes)
    if not hidden:  # else they would tell the author
        known += [f"{transcript.speed:.1f} tokens/s"] if transcript.speed else []
        known += [f"{accepted:.2f} tokens per step"] if accepted > 1 else []
        if transcript.unused:
            known.append("drafter unused: no draft tree is faster on this machine")
        elif transcript.speed and rejected and accepted < 1 + MIN_GAIN:
            known.append("almost no draft token accepted")
    return [*known, *([ENDS[transcript.end]] if transcript.end else [])]


def _difference(first: Transcript | None, transcript: Transcript, differs: int | None) -> list[str]:
    if first is None or not (first.end and transcript.end):
        return []
    if first.text == transcript.text:
        return ["identical to A"]
    if differs == 0:  # they have nothing in common
        return []
    place = min(len(first.text), len(transcript.text)) if differs is None else differs
    return [f"first difference from A at character {place + 1}"]


def heads_of(jobs: Sequence[Job], voter: str) -> set[int]:
    """Heads that drafted tokens of these runs, where the voter may know."""
    return {
        head
        for job in jobs
        if not is_hidden(job, voter)
        for side in range(1, len(names_of(job)) + 1)
        for _, head in read_transcript(job.run, side).tokens
    } - {BASE}


def answers(request: Request) -> Response:
    """State of a run, and the text of each side after the passes the page already has:
    `?run=generate-0007&at=12,9`, in the order of the config."""
    try:
        job = queries.job(request.query_params.get("run", ""))
    except SlimscopeError as error:
        return JSONResponse({"over": True, "error": error.what}, 404)
    shown = request.query_params.get("at", "").split(",")
    sides = len(names_of(job))
    drawn = [int(text[:DIGITS]) if text.isdecimal() else 0 for text in shown[:sides]]
    drawn += [0] * (sides - len(drawn))
    hidden = is_hidden(job, current_user(request).name)
    content = {
        "over": job.state not in ACTIVE,
        "now": now_ms(),
        "sides": [_side(job, side, after, hidden) for side, after in enumerate(drawn, 1)],
    }
    return JSONResponse(content, headers={"Cache-Control": "no-store"})


def _side(job: Job, side: int, after: int, hidden: bool) -> dict[str, Any]:
    transcript = read_transcript(job.run, side)
    passes = len(transcript.passes)
    if passes < after:  # written anew by another attempt
        after = 0
    new = spans_of(transcript, hidden, after=after) if passes > after else []
    return {
        "side": side,
        "after": after,
        "passes": passes,
        "html": WIDGETS.tokens_html(new),
        "facts": " · ".join(facts(transcript, hidden)),
        "status": status(job, transcript, hidden),
    }
