"""Answers side by side, how each was decoded, and earlier answers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from backend.models.layer_names import read_names
from backend.queue import roles
from backend.queue.roles import Actor
from backend.store.states import ACTIVE, LIVE, State
from backend.store.tables import Job
from jobs.generate.transcript import ENDS, Transcript, first_difference, read_transcript
from ui.runs.actions.one import buttons
from ui.runs.html import error_of, model_name
from ui.runs.token_strip import BASE, Span, tints, token_spans
from ui.templates import fragments
from ui.widgets.html import WIDGETS

HTML = fragments("pages/playground/page.html")
BETTER, TIE = "better-", "tie"  # tags that hold a vote
LETTERS = "ABCD"
MAX_EARLIER = 12
MAX_PROMPT = 120  # characters of an earlier prompt


@dataclass(frozen=True)
class Answer:
    """One column.

    Attributes:
        side: of the config, from 1.
        model: None where names are hidden.
        waiting: why there are no tokens yet; "" when there will be none.
        text: the whole text once it has ended, to copy.
    """

    side: int
    letter: str
    model: Markup | None
    facts: list[str]
    spans: list[Span]
    waiting: str
    text: str | None


def models_of(job: Job) -> list[str]:
    """Names of the models, in the order of the config."""
    return list(read_names(str(job.config["sides"])))


def display_order(job: Job, blind: bool) -> list[int]:
    """The sides, from 1, in the order of the columns; shuffled by the run's name where names are
    hidden."""
    sides = range(1, len(models_of(job)) + 1)
    return sorted(sides, key=lambda n: zlib.crc32(f"{job.run} {n}".encode())) if blind else [*sides]


def vote_of(job: Job) -> int | None:
    """The better side, 0 for a tie; None before there is a vote."""
    votes = vote_tags(job)
    return next((votes[tag] for tag in job.tags if tag in votes), None)


def vote_tags(job: Job) -> dict[str, int]:
    """The tags that say which of the job's sides is better, or (0) that none is."""
    return {TIE: 0} | {f"{BETTER}{n}": n for n in range(1, len(models_of(job)) + 1)}


def board(
    job: Job, place: int | None, blind: bool, actor: Actor, earlier: Sequence[Job], now: int
) -> Markup:
    """HTML: prompt, state, place in the queue, answers, and the earlier runs."""
    hidden = blind and vote_of(job) is None and len(models_of(job)) > 1
    sides = display_order(job, hidden)
    texts = {n: read_transcript(job.run, n) for n in sides}
    sources = {head for text in texts.values() for _, head in text.tokens} - {BASE}
    return HTML.board(
        job,
        place,
        error_of(job),
        _answers(job, sides, texts, hidden),
        _votes(job, sides, actor),
        WIDGETS.legend(tints(sources)) if sources and not hidden else "",
        buttons(job, actor) if job.state in ACTIVE else "",
        HTML.history([*map(_earlier, earlier[:MAX_EARLIER])], job.run, now),
    )


def _answers(
    job: Job, sides: Sequence[int], texts: dict[int, Transcript], hidden: bool
) -> list[Answer]:
    """The columns; all but the first are compared with the first."""
    first = texts[sides[0]]
    return [
        _answer(job, side, letter, texts[side], first if side != sides[0] else None, hidden)
        for side, letter in zip(sides, LETTERS, strict=False)
    ]


def _answer(
    job: Job, side: int, letter: str, transcript: Transcript, first: Transcript | None, hidden: bool
) -> Answer:
    differs = first_difference(first.text, transcript.text) if first else None
    spans = [Span(transcript.text)] if hidden else token_spans(transcript, differs)
    waiting = "Starting soon." if side == 1 else "Waiting for the previous model."
    return Answer(
        side,
        letter,
        None if hidden else model_name(models_of(job)[side - 1]),
        [*_facts(transcript, hidden), *_difference(first, transcript, differs)],
        spans if transcript.passes else [],
        waiting if job.state in LIVE and not transcript.end else "",
        transcript.text if transcript.end else None,
    )


def _facts(transcript: Transcript, hidden: bool) -> list[str]:
    facts = [f"{len(transcript.tokens)} tokens"]
    if transcript.speed and not hidden:
        facts.append(f"{transcript.speed:.1f} tokens/s")
    if transcript.accepted and not hidden:
        facts.append(f"{transcript.accepted:.2f} tokens per step")
    return [*facts, *([ENDS[transcript.end]] if transcript.end else [])]


def _difference(first: Transcript | None, transcript: Transcript, differs: int | None) -> list[str]:
    """How a finished text differs from the first column's."""
    if first is None or not (first.end and transcript.end):
        return []
    if first.text == transcript.text:
        return ["identical to A"]
    place = min(len(first.text), len(transcript.text)) if differs is None else differs
    return [f"first difference from A at character {place + 1}"]


def _votes(job: Job, sides: Sequence[int], actor: Actor) -> Markup:
    """HTML: buttons to vote for an answer, or the vote."""
    if len(sides) < 2 or job.state != State.SUCCEEDED:
        return Markup()
    vote = vote_of(job)
    if vote is not None:
        return HTML.vote(models_of(job)[vote - 1] if vote else None)
    letters = zip(sides, LETTERS, strict=False)
    choices = [(f"{BETTER}{n}", f"{letter} is better") for n, letter in letters]
    return HTML.vote_buttons(job.run, [*choices, (TIE, "Tie")], roles.may_not_change(actor))


def _earlier(job: Job) -> tuple[Job, str, list[Markup]]:
    """An earlier run, its prompt and its models."""
    prompt = " ".join(str(job.config["prompt"]).split())
    short = prompt if len(prompt) <= MAX_PROMPT else f"{prompt[:MAX_PROMPT]}…"
    return job, short, [*map(model_name, models_of(job))]
