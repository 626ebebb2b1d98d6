"""Unexpected input is rejected with a reason, and does not affect other runs."""

from typing import Any

import pytest
from sqlalchemy import text

from backend.errors import ConfigError, ConflictError, NotFoundError
from backend.queue import scheduling, service
from backend.queue.actor import Actor
from backend.queue.service import MAX_PRIORITY
from backend.settings import Settings
from backend.store import queries
from backend.store.json_column import DamagedJson, check_intact
from backend.store.session import writing
from backend.store.states import State
from jobs.operations.changes import cancel_runs
from jobs.operations.runs import list_runs, run_results, runs_text
from jobs.reproduction import reproduce
from jobs.submit import validate_config
from ui.search import search_runs

HOST = Actor("mira", "host")


@pytest.fixture
def store(tables: Settings) -> None:
    for name in ("first", "second", "third"):
        service.enqueue("statistics", {"model": "toy"}, HOST, name=name)


def test_a_run_of_another_kind_is_not_meant(store: None) -> None:
    for ask in (queries.job, queries.sweep, queries.artifacts, run_results):
        with pytest.raises(NotFoundError, match=r"Run 2 is statistics-0002"):
            ask("amphista-0002")
    with pytest.raises(NotFoundError):
        cancel_runs(["amphista-0002"], HOST)
    assert queries.job(2).state == State.QUEUED
    for run in (2, "2", "0002", "statistics-0002", "statistics-2"):
        assert queries.job(run).run == "statistics-0002"


@pytest.mark.parametrize("column", ["config", "environment", "tags", "error"])
def test_one_damaged_row_hides_no_other(store: None, column: str) -> None:
    with writing() as session:
        session.execute(text(f"UPDATE jobs SET {column} = '{{\"model' WHERE id = 2"))
    listed = list_runs()
    assert [run["damaged"] for run in listed] == [False, True, False]
    states = [line.split()[1] for line in runs_text(listed).splitlines()[1:]]
    assert states == ["queued", "damaged", "queued"]
    assert "third" in search_runs("statistics")[0]["about"]
    assert queries.job(2).shown_state == "damaged" and scheduling.status().queued


@pytest.mark.parametrize("column", ["name", "owner", "stage", "config", "tags", "note"])
def test_bytes_that_are_no_text_hide_no_other_run(store: None, column: str) -> None:
    with writing() as session:
        session.execute(text(f"UPDATE jobs SET {column} = CAST(X'7B22FF' AS TEXT) WHERE id = 2"))
        session.execute(text("UPDATE job_events SET text = CAST(X'FF' AS TEXT) WHERE job_id = 2"))
    listed = list_runs()
    assert [run["id"] for run in listed] == [f"statistics-000{n}" for n in (3, 2, 1)]
    assert listed[1]["damaged"] == (column in ("config", "tags"))
    assert "third" in search_runs("statistics")[0]["about"]
    assert queries.events(2)[0].text == "\ufffd" and scheduling.status().queued


def test_json_with_bytes_that_are_no_text_is_damaged(store: None) -> None:
    stored = b'{"model": "\xff"}'.hex()  # JSON all the same, but of another model
    with writing() as session:
        session.execute(text(f"UPDATE jobs SET config = CAST(X'{stored}' AS TEXT) WHERE id = 2"))
    assert queries.job(2).damaged and not queries.job(1).damaged


def test_a_damaged_run_is_not_run_with_defaults(store: None) -> None:
    with writing() as session:
        session.execute(text("UPDATE jobs SET config = '{' WHERE id = 2"))
    with pytest.raises(ConfigError, match="damaged"):
        reproduce("statistics-0002", HOST)
    with pytest.raises(ConfigError, match="cannot be read"):
        check_intact(DamagedJson())
    check_intact({})


def test_a_priority_has_bounds_and_what_has_ended_cannot_be_cancelled(store: None) -> None:
    for priority in (MAX_PRIORITY + 1, -(2**70)):
        with pytest.raises(ConfigError, match="-1000 to 1000") as raised:
            service.enqueue("statistics", {}, HOST, priority=priority)
        assert raised.value.field == "priority"
    assert len(queries.jobs()) == 3
    cancel_runs(["statistics-0001"], HOST)
    with pytest.raises(ConflictError, match="It is cancelled already"):
        cancel_runs(["statistics-0001"], HOST)
    with pytest.raises(ConflictError, match="Nothing was cancelled"):
        cancel_runs([], HOST)
    cancel_runs(["1", "2"], HOST)  # one of them is active
    assert queries.job(2).state == State.CANCELLED


@pytest.mark.parametrize(
    ("values", "field"),
    [({"segments": True}, "segments"), ({"damping": False}, "damping"), ({"seed": True}, "seed")],
)
def test_true_is_no_number(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match="must be a") as raised:
        validate_config("sds", values)
    assert raised.value.field == field


def test_a_percentage_without_its_sign_is_told_apart_from_a_share() -> None:
    with pytest.raises(ConfigError, match="For a percentage write 50%") as raised:
        validate_config("sds", {"pattern": "50"})
    assert raised.value.field == "pattern"
