"""Tests of the history: every change of a run is one event with its author."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.queue.actor import Actor, guest_name
from backend.queue.artifacts import work_folder
from backend.queue.service import enqueue
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.operations.registry import OPERATIONS
from tests.conftest import Given
from tests.queue.conftest import HOST, change


def in_state(state: State) -> str:
    """Store a run in this state, with a checkpoint."""
    job = enqueue("count", {"steps": 1}, HOST)
    change(Job, job.id, state=state)
    (work_folder(job.run) / "step-0").mkdir(parents=True)
    return job.run


@pytest.mark.parametrize(
    ("state", "name", "values", "event"),
    [
        (State.QUEUED, "cancel", {}, "cancelled"),
        (State.RUNNING, "cancel", {}, "asked to stop"),
        (State.QUEUED, "next", {}, "put first"),
        (State.FAILED, "resume", {}, "resumed"),
        (State.FAILED, "free", {}, "checkpoints deleted"),
        (State.FAILED, "edit", {"tag": "a"}, "tagged"),
        (State.FAILED, "edit", {"note": "a"}, "note written"),
        (State.FAILED, "edit", {"name": "a"}, "renamed"),
        (State.FAILED, "archive", {}, "archived"),
        (State.FAILED, "delete", {}, "deleted"),
    ],
)
def test_one_event_for_each_change(
    queue: Path, state: State, name: str, values: dict[str, str], event: str
) -> None:
    first = in_state(State.QUEUED)
    run, other_actor = in_state(state), Actor("kim", "host")
    OPERATIONS[name].call(other_actor, run=run, **values)
    assert [(e.type, e.actor) for e in queries.events(run)] == [("queued", "mira"), (event, "kim")]
    assert [e.type for e in queries.events(first)] == ["queued"]


def test_a_guest_is_known_by_a_name_that_holds_no_address(queue: Path, given: Given) -> None:
    given(GUEST_RUNS="1")
    guest = Actor(guest_name("5f3a21", "9c"), "guest", "10.0.0.7")
    cost = SimpleNamespace(seconds=1.0, bytes=1, open_ended=False)
    run = enqueue("count", {"steps": 1}, guest, cost=cost).run
    OPERATIONS["cancel"].call(guest, run=run)
    assert {event.actor for event in queries.events(run)} == {"guest-5f3a21-9c"}
