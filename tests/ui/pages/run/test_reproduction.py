"""The card that says whether a run came out the same a second time."""

from __future__ import annotations

from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job, Result
from tests.ui.conftest import HOSTILE, job_row, result_rows
from ui.pages.run.details import reproduction_card


def repeated(**values: object) -> None:
    """sds-0006 repeats sds-0001 with the same figures."""
    with writing() as session:
        session.add(
            job_row(
                6, "succeeded", **{"parent": 1, "finished_at": 2, "kept_stage": "sds", **values}
            )
        )
        session.flush()
        session.add_all(result_rows(6))


def test_both_runs_say_that_they_are_equal(seeded: Settings) -> None:
    repeated()
    new, old = reproduction_card(queries.job(6)), reproduction_card(queries.job(1))
    assert "equal" in new and 'href="run?id=sds-0001"' in new and "<table" not in new
    assert "equal" in old and 'href="run?id=sds-0006"' in old


def test_differences_are_tabled_and_text_stays_text(seeded: Settings) -> None:
    repeated(environment={"weights_sha256": "ab" * 32, "host": HOSTILE})
    with writing() as session:
        session.get_one(Result, (6, "sds", "perplexity", "")).value = 6.25
    html = reproduction_card(queries.job(6))
    assert "sds-0001 and sds-0006 differ" in html and "6.250" in html and "abababababab…" in html
    assert "onerror=" in html and "<img" not in html and "${" not in html


def test_a_replay_that_waits_is_open_and_a_single_run_has_no_card(seeded: Settings) -> None:
    assert reproduction_card(queries.job(1)) == ""
    repeated()
    with writing() as session:
        session.get_one(Job, 6).state = State.QUEUED
    html = reproduction_card(queries.job(6))
    assert "open" in html and "once both have succeeded" in html and "<table" not in html
