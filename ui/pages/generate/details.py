"""Answers side by side, how they came about, and the gallery of earlier ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from backend.models.layer_names import read_names
from backend.queue import roles
from backend.queue.roles import Actor
from backend.store.states import ACTIVE, LIVE, State
from backend.store.tables import Job
from jobs.generate.transcript import ENDS, Transcript, first_difference, read_transcript
from ui.format import esc, href
from ui.pages.generate.token_strip import legend, token_strip
from ui.runs.actions import buttons
from ui.runs.html import error_of, model_name, named_link
from ui.widgets.html import attribute, badge, card, copy_button, off, time_tag

BETTER, TIE = "better-", "tie"  # tags that hold a vote
LETTERS = "ABCD"
GALLERY = 12
SHORT = 120  # letters of a prompt in the gallery


def names_of(job: Job) -> list[str]:
    """Who answers, in the order of the config."""
    return list(read_names(str(job.config["sides"])))


def order_of(job: Job, blind: bool) -> list[int]:
    """The sides as they are shown, from 1; shuffled by the run's name where names are hidden."""
    sides = range(1, len(names_of(job)) + 1)
    return sorted(sides, key=lambda n: zlib.crc32(f"{job.run} {n}".encode())) if blind else [*sides]


def vote_of(job: Job) -> int | None:
    """The side that was found better, 0 for a tie; None before there is a vote."""
    votes = votes_on(job)
    return next((votes[tag] for tag in job.tags if tag in votes), None)


def votes_on(job: Job) -> dict[str, int]:
    """The tags that say which of the job's sides is better, or (0) that none is."""
    return {TIE: 0} | {f"{BETTER}{n}": n for n in range(1, len(names_of(job)) + 1)}


def answers(job: Job, place: int | None, blind: bool, actor: Actor) -> str:
    """HTML: prompt, state, and the answers.

    Args:
        place: in the queue; None when it is not waiting.
    """
    hidden = blind and vote_of(job) is None and len(names_of(job)) > 1
    sides = order_of(job, hidden)
    found = {n: read_transcript(job.run, n) for n in sides}
    first = found[sides[0]]
    who = {head for w in found.values() for _, head in w.tokens} - {0}
    columns = "".join(
        _side(job, n, letter, found[n], first if n != sides[0] else None, hidden)
        for n, letter in zip(sides, LETTERS, strict=False)
    )
    key = legend(who) if who and not hidden else ""
    return card(
        "Answers",
        f'<p class="long asked">{esc(job.config["prompt"])}</p>{_waiting(place)}{error_of(job)}'
        f'<div class="answers">{columns}</div>{key}{_votes(job, sides, actor)}',
        f"{named_link(job)} {badge(job.state)} {_again(job)} {_stop(job, actor)}",
    )


def _waiting(place: int | None) -> str:
    """Where a run that has not begun stands."""
    if place is None:
        return ""
    where = "It is the next to start." if place == 1 else f"It is number {place} in the queue."
    return f'<p class="quiet" role="status">{where}</p>'


def _again(job: Job) -> str:
    return f'<a class="button small" href="{href("generate", **{"from": job.run})}">Ask again</a>'


def _stop(job: Job, actor: Actor) -> str:
    return buttons(job, actor) if job.state in ACTIVE else ""


def _side(
    job: Job, side: int, letter: str, found: Transcript, first: Transcript | None, hidden: bool
) -> str:
    """HTML: one answer."""
    name = letter if hidden else f"{letter} · {model_name(names_of(job)[side - 1])}"
    ended = bool(found.end)
    differs = first_difference(first.text, found.text) if first else None
    text = token_strip(found, differs) if not hidden else f'<p class="strip">{esc(found.text)}</p>'
    going = job.state in LIVE and not ended
    begins = "It begins soon." if side == 1 else "It writes after those before it."
    wait = f'<p class="quiet">{begins}</p>' if going else ""
    body = text if found.passes else wait
    copied = copy_button(found.text, "Copy text") if ended else ""
    return (
        f'<section aria-live="off" data-testid="answer-{side}"><h3>{name}</h3>'
        f'<p class="quiet">{_figures(found, hidden)}{_compared(first, found, differs)}</p>'
        f"{body}<p>{copied}</p></section>"
    )


def _figures(found: Transcript, hidden: bool) -> str:
    parts = [f"{len(found.tokens)} tokens"]
    if found.speed and not hidden:
        parts.append(f"{found.speed:.1f} tokens/s")
    if found.accepted and not hidden:
        parts.append(f"{found.accepted:.2f} tokens a pass")
    return " · ".join([*parts, *([ENDS[found.end]] if found.end else [])])


def _compared(first: Transcript | None, found: Transcript, differs: int | None) -> str:
    if first is None or not (first.end and found.end):
        return ""
    if first.text == found.text:
        return " · the same text as A"
    place = differs if differs is not None else min(len(first.text), len(found.text))
    return f" · differs from A at letter {place + 1}"


def _votes(job: Job, sides: Sequence[int], actor: Actor) -> str:
    """HTML: buttons to say which answer is better, or what was said."""
    if len(sides) < 2 or job.state != State.SUCCEEDED:
        return ""
    vote = vote_of(job)
    if vote is not None:
        words = f"{esc(names_of(job)[vote - 1])} was found better." if vote else "Found equal."
        return f'<p class="quiet" data-testid="vote">{words}</p>'
    closed = off(roles.may_not_change(actor))
    named = zip(sides, LETTERS, strict=False)
    choices = [(f"{BETTER}{n}", f"{letter} is better") for n, letter in named]
    made = "".join(
        f'<button type="button" class="small" data-do="{tag}" data-run="{esc(job.run)}"{closed}>'
        f"{words}</button>"
        for tag, words in [*choices, (TIE, "Tie")]
    )
    return f'<div class="actions">{made}</div>'


def gallery(jobs: Sequence[Job], chosen: str, now: int) -> str:
    """HTML: earlier prompts; each opens with its answers."""
    if not jobs:
        return ""
    items = "".join(_earlier(job, job.run == chosen, now) for job in jobs[:GALLERY])
    more = f'<a href="{href("runs", q="kind:generate")}">All of them</a>'
    return card("Earlier answers", f'<ul class="plain">{items}</ul>', more)


def _earlier(job: Job, current: bool, now: int) -> str:
    prompt = " ".join(str(job.config["prompt"]).split())
    short = prompt if len(prompt) <= SHORT else f"{prompt[:SHORT]}…"
    names = ", ".join(map(model_name, names_of(job)))
    here = ' aria-current="true"' if current else ""
    opens = f'data-view="{attribute({"run": job.run})}"'
    return (
        f'<li><button type="button" class="earlier"{here} {opens}>{esc(short)}</button> '
        f"{badge(job.state)} "
        f'<span class="quiet">{names} · {time_tag(job.created_at, now)}</span></li>'
    )
