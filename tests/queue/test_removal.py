"""Deleting runs: who may, what stays, what comes back, and when it is gone."""

import pytest

from backend.errors import ConflictError, ForbiddenError
from backend.queue import labels, removal, scheduling
from backend.queue.actor import Actor
from backend.queue.artifacts import run_folder
from backend.queue.lifecycle import note
from backend.queue.service import enqueue
from backend.settings import Settings, settings
from backend.store import queries
from backend.store.dialects import dialect_of
from backend.store.session import engine_for, now_ms, writing
from backend.store.states import State
from backend.store.tables import Job, Result, Table, example_number, run_name
from tests.queue.conftest import HOST, bare_job
from ui.runs.rows import all_rows
from ui.runs.view import TableQuery, query_runs
from ui.search import search_runs

GUEST = Actor("guest", "guest")


def add(number: int, state: State = State.SUCCEEDED, **config: str) -> None:
    with writing() as session:
        session.add(bare_job(id=number, config=config, state=state, finished_at=now_ms()))
        session.flush()
        note(session, number, "added", "mira")
        session.add(Result(job_id=number, stage="sds", family="perplexity", value=9.0))


def continue_numbering() -> None:
    """The next run gets the number after the last one there is."""
    with engine_for(settings().url).begin() as connection:
        dialect_of(connection).continue_numbering(connection, Table.metadata)


@pytest.fixture(autouse=True)
def two_runs(tables: Settings) -> None:
    for number in (1, 2):
        add(number)
    continue_numbering()
    model = run_folder("sds-0001") / "model"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"w" * 1000)


def listed(q: str = "") -> list[str]:
    query = TableQuery(q, "age", True, 1, (), "", (), ())
    return sorted(row.job.run for row in query_runs(query).rows)


def test_a_deleted_run_is_hidden_everywhere_and_comes_back_whole() -> None:
    assert listed() == ["sds-0001", "sds-0002"]
    removal.remove(["sds-0001"], HOST)
    assert [job.run for job in queries.jobs()] == ["sds-0002"]
    assert [row.job.run for row in all_rows()] == ["sds-0002"]
    assert [hit["title"] for hit in search_runs("sds")] == ["sds-0002"]
    assert scheduling.status().finished == 1
    assert listed() == ["sds-0002"] and listed("deleted:yes") == ["sds-0001"]
    assert (run_folder("sds-0001") / "model" / "weights").exists()
    assert [job.run for job in removal.restore([1], HOST)] == ["sds-0001"]
    assert listed() == ["sds-0001", "sds-0002"]
    assert [e.type for e in queries.events(1)] == ["added", "deleted", "restored"]


def test_a_purge_frees_the_disk_and_the_number_is_not_given_again() -> None:
    removal.remove([1, 2], HOST)
    assert removal.purge([1], HOST) == 1000
    assert not run_folder("sds-0001").exists() and not queries.results([1])
    assert listed("deleted:yes") == ["sds-0002"]
    with pytest.raises(ConflictError, match="cannot be restored"):
        removal.restore([1], HOST)
    assert queries.job(1).purged and queries.events(1)[-1].text == "1 kB freed"
    assert enqueue("sds", {}, HOST).id == 3


def test_only_what_was_deleted_a_day_ago_is_purged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removal.remove([1], HOST)
    removal.purge_expired()
    assert not queries.job(1).purged
    tomorrow = now_ms() + removal.DAY_MS + 1
    monkeypatch.setattr(removal, "now_ms", lambda: tomorrow)
    removal.purge_expired()
    assert queries.job(1).purged and not queries.job(2).purged


def test_what_is_needed_or_not_ended_is_not_deleted() -> None:
    add(3, State.RUNNING, model="sds-0001")
    with pytest.raises(ConflictError, match="is running"):
        removal.remove([2, 3], HOST)
    with pytest.raises(ConflictError, match="sds-0003 uses it"):
        removal.remove([1], HOST)
    add(4, State.QUEUED, drafters="amphista-0009, sds-0002")
    with pytest.raises(ConflictError, match="sds-0004 uses it"):
        removal.remove([2], HOST)
    assert not any(job.removed_at for job in queries.jobs())  # all or none
    with pytest.raises(ForbiddenError):
        removal.remove([1], GUEST)


def test_an_archived_run_leaves_the_list_until_it_is_asked_for() -> None:
    removal.archive([1], HOST)
    assert listed() == ["sds-0002"] and listed("archived:yes") == ["sds-0001"]
    assert [row.job.run for row in all_rows()] == ["sds-0002", "sds-0001"]
    removal.archive([1], HOST, back=True)
    assert listed() == ["sds-0001", "sds-0002"]


def test_an_example_has_a_name_and_takes_no_number() -> None:
    with writing() as session:
        for number in (1, 2):
            session.delete(session.get_one(Job, number))
    continue_numbering()
    add(number := example_number("sds", 1))
    assert run_name("sds", number) == "sds-example" == queries.job("sds-example").run
    for change in ({"name": "mine"}, {"text": "mine"}):
        with pytest.raises(ConflictError, match="read-only"):
            labels.edit(["sds-example"], HOST, **change)
    assert [job.run for job in (enqueue("sds", {}, HOST), enqueue("sds", {}, HOST))] == [
        "sds-0001",
        "sds-0002",
    ]
    assert listed() == ["sds-0001", "sds-0002", "sds-example"]
    assert settings().artifacts / "sds-example" == run_folder("sds-example")
