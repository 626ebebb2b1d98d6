"""The card of a pipeline on the pages of its runs."""

from typing import Any

import pytest

from backend.errors import ForbiddenError
from backend.queue import scheduling
from backend.queue.scheduling import awaited
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job, Result
from jobs import pipeline
from tests.ui.conftest import HOSTILE
from tests.ui.lab import GUEST, asked
from ui.pages.run import page
from ui.pages.run.pipeline import pipeline_card, step_rows
from ui.runs.actions import run_action
from ui.runs.html import waiting_html
from ui.runs.queue_eta import start_times

NAME = HOSTILE[:80]
TEXT = f"""
name: {NAME!r}
model: toy
steps:
  - sds: {{preset: quick look}}
  - amphista: {{minutes: 1, answers: 128, heldout: 16}}
  - benchmark: {{count: 2}}
"""


@pytest.fixture
def queued(seeded: Settings) -> list[Job]:
    return pipeline.queue(pipeline.read(TEXT), page.current_user(asked()))


def test_what_each_step_gives(queued: list[Job]) -> None:
    sds, drafter, speed = queued
    figures: list[tuple[Job, str, str, float]] = [
        (sds, "dense", "perplexity", 10.0),
        (sds, "sds", "perplexity", 12.0),
        (speed, "vanilla", "tokens_per_second", 40.0),
        (speed, "vanilla", "bytes_per_token", 76e6),
        (speed, "vanilla", "pass_ms", 4.6),
        (speed, drafter.run, "tokens_per_second", 60.0),
        (speed, drafter.run, "accepted_length", 1.75),
    ]
    with writing() as session:
        for job, stage, metric, value in figures:
            row = Result(job_id=job.id, stage=stage, family=metric, value=value, details={})
            session.add(row)
        kept = session.get_one(Job, sds.id)
        kept.kept_stage, kept.state = "sds", State.SUCCEEDED
    jobs = [queries.job(job.run) for job in queued]
    first, pruned, drafted, slow, fast = ([str(cell) for cell in row] for row in step_rows(jobs))
    assert first[:2] == ["toy", "10.00"] and pruned[1] == "12.00"
    assert drafted[1:] == ["–"] * 7
    assert slow[4:7] == ["76.0\u00a0MB", "4.600", "40.00"] and fast[5:] == ["–", "60.00", "1.750"]
    card = pipeline_card(drafter, page.current_user(asked()))
    assert "Cancel all" in card and card.count("<tr>") == 6
    assert NAME not in card  # shown as text


def test_a_queued_run_says_what_it_waits_for(queued: list[Job]) -> None:
    sds, drafter, _ = queued
    status = scheduling.status()
    assert drafter.id not in start_times(status, awaited(job.id for job in status.queued))
    with writing() as session:
        session.get_one(Job, sds.id).state = State.FAILED
    words: Any = waiting_html(awaited([drafter.id])[drafter.id])
    assert f"{sds.run}</a>, which failed" in words


def test_steps_alone_stand_apart_and_all_are_cancelled_at_once(seeded: Settings) -> None:
    host, text = page.current_user(asked()), TEXT.replace("steps:", "alone: true\nsteps:", 1)
    queued = pipeline.queue(pipeline.read(text), host)
    assert len(queued) == 5
    assert pipeline_card(queries.job(1), host) == ""
    assert pipeline_card(queued[4], host).count("Alone: ") == 2
    assert "Cancellation requested: 5 runs." in run_action("cancel-pipeline", queued[2].run, host)
    assert {queries.job(job.run).state for job in queued} == {State.CANCELLED}
    assert "Cancel all" not in pipeline_card(queries.job(queued[0].run), host)
    with pytest.raises(ForbiddenError):
        run_action("cancel-pipeline", queued[0].run, page.current_user(asked(GUEST)))
