"""What an open page asks for while answers are being written: their new tokens."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.errors import SlimscopeError
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import ACTIVE
from backend.store.tables import Job
from jobs.generate.arena import is_hidden, names_of
from jobs.generate.transcript import read_transcript
from ui.pages.playground.answers import facts, spans_of, status
from ui.security.auth import current_user
from ui.widgets.html import WIDGETS

DIGITS = 9  # of a number of passes


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
