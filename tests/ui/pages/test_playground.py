"""The Generate page: prompts, growing answers, the token strip, votes, and earlier answers."""

from __future__ import annotations

from typing import Any

import pytest

from backend.methods.amphista.config import LOOKED_UP
from backend.queue import labels
from backend.settings import Settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.states import State
from jobs.generate.transcript import ENDS, Transcript, TranscriptStep, transcript_writer
from tests.ui.lab import GUEST, asked, job, pressed, store
from ui.pages.playground import page
from ui.pages.playground.details import HTML, display_order, vote_of
from ui.runs.token_strip import tints, token_spans
from ui.widgets.html import WIDGETS

HOSTILE = "<img src=x onerror=alert(1)>"
CONFIG = {"prompt": f"Tell me. {HOSTILE}", "sides": "toy, amphista-0002"}


@pytest.fixture
def answered(current: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run of two sides whose texts part at the second token."""
    upgrade()
    store(job(1, kind="generate", config=CONFIG, name=""))
    with transcript_writer("generate-0001", 1) as writer:
        writer.add(ms=30.0, tokens=[["A", 0]], rejected=[])
        writer.add(ms=10.0, tokens=[[" cat", 0]], rejected=[])
        writer.add(end="limit", rest="")
    with transcript_writer("generate-0001", 2) as writer:
        writer.add(ms=30.0, tokens=[["A", 0]], rejected=[])
        writer.add(ms=10.0, tokens=[[f" {HOSTILE}", 1], [" dog", 0]], rejected=[" sat"])
        writer.add(end="end", rest="")
    return "generate-0001"


def draw(blind: bool = False, who: Any = None, **query: str) -> str:
    updates = page.draw(blind, asked(who, **query) if who else asked(**query))
    assert not updates["timer"]["active"]
    return updates["board"]


def strip(transcript: Transcript, differs: int | None = None) -> str:
    return WIDGETS.strip(token_spans(transcript, differs))


def legend(sources: set[int]) -> str:
    return WIDGETS.legend(tints(sources))


def test_answers_stand_side_by_side(answered: str) -> None:
    html = draw(run=answered)
    assert html.count('data-testid="answer-') == 2
    assert HOSTILE not in html and "&lt;img" in html
    assert 'class="head-1"' in html and "<s title=" in html and "head 1" in html
    assert "200.0 tokens/s" in html and "2.00 tokens per step" in html
    assert "first difference from A at character 3" in html and ENDS["end"] in html
    assert "Earlier answers" in html and "Reuse settings" in html


def test_a_vote_is_kept_and_shown(answered: str) -> None:
    html = draw()
    assert 'data-do="better-1"' in html and 'data-do="tie"' in html
    page.act(asked(), pressed("better-2", answered))
    assert queries.job(answered).tags == ["better-2"]
    html = draw()
    assert "Vote: amphista-0002 is better" in html
    assert "data-do" not in html.split("Earlier")[0]
    again = page.act(asked(), pressed("tie", answered))
    assert "already a vote" in again["value"] and vote_of(queries.job(answered)) == 2


def test_guests_do_not_vote(answered: str) -> None:
    assert "disabled" in draw(who=GUEST)
    refused = page.act(asked(GUEST), pressed("tie", answered))
    assert "may not" in refused["value"] and queries.job(answered).tags == []


def test_what_the_browser_sends_is_checked(answered: str) -> None:
    for deed in ("better-9", "better-1; drop", "better-", "explode"):
        refused = page.act(asked(), pressed(deed, answered))
        assert "problem" in refused["value"] or "nothing called" in refused["value"]
    assert queries.job(answered).tags == []


def test_blind_hides_names_until_the_vote(answered: str) -> None:
    html = draw(True).split("Earlier")[0]
    assert "amphista-0002" not in html and "tokens/s" not in html and "head-1" not in html
    assert "A is better" in html and "B is better" in html
    assert sorted(display_order(queries.job(answered), True)) == [1, 2]
    labels.tag([answered], ["tie"], page.current_user(asked()))
    assert "amphista-0002" in draw(True).split("Earlier")[0]


def test_who_waits_is_told_the_place(current: Settings) -> None:
    upgrade()
    store(
        job(1, kind="sds", state="queued", started_at=None, finished_at=None),
        job(2, kind="generate", state="queued", config=CONFIG, started_at=None, finished_at=None),
    )
    updates = page.draw(False, asked(run="generate-0002"))
    html = updates["board"]
    assert "Position 2 in the queue" in html and updates["timer"]["active"]
    assert 'data-do="cancel"' in html


def test_nothing_asked_yet(current: Settings) -> None:
    upgrade()
    assert HTML.nothing() == draw() == draw(run="generate-0099")
    assert "select models to compare" in draw()


def test_drafters_can_be_chosen(current: Settings) -> None:
    upgrade()
    config = {"model": "toy", "minutes": 12.5, "answers": 2000, "encoder": False}
    store(job(2, kind="amphista", state=State.SUCCEEDED, config=config))
    told = "amphista-0002 for toy: Staged adaptation only, 12.5 min, 2,000 answers"
    assert (told, "amphista-0002") in page.sides()
    assert page._generate_run("amphista-0002") is None  # not one of these


# the strip ----------------------------------------------------------------------------------------


def test_a_token_is_tinted_by_its_head_and_marked_where_texts_part() -> None:
    passes = [
        TranscriptStep([("A", 0)], [], 9.0),
        TranscriptStep([(" b", 1), ("", 2), (" c", 9)], [" d", " "], 5.0),
    ]
    html = strip(Transcript(passes, "limit", "!"), differs=3)
    assert html.count("<span") == 2 and html.count("<mark") == 1
    assert '<mark class="head-6" title="drafted by head 9, step 1, 5.0 ms"> c</mark>' in html
    assert html.count("<s ") == 1 and "rejected draft token" in html
    assert html.endswith("!</p>")


def test_a_long_text_is_tinted_at_its_beginning_alone() -> None:
    html = strip(Transcript([TranscriptStep([(f" {n}", 1)], [], 1.0) for n in range(600)], "limit"))
    assert html.count("<span") == 512 and html.endswith(" 599</p>")
    assert legend({1, 2}).count("head-") == 2


def test_what_was_looked_up_has_a_tint_of_its_own() -> None:
    html = strip(Transcript([TranscriptStep([(" a", LOOKED_UP), (" b", 0)], [], 1.0)], "limit"))
    assert 'class="head-looked" title="from prompt lookup, step 0, 1.0 ms"> a' in html
    assert legend({LOOKED_UP}).count("head-") == 1 and "prompt lookup" in legend({LOOKED_UP, 3})
    assert "head-looked" not in legend({3})
