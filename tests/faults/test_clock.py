"""The system clock is set while jobs wait and run."""

from pathlib import Path

import pytest

from backend.queue import lifecycle, scheduling, service, supervisor
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store import session as session_module
from backend.store.session import now_ms, writing
from backend.store.states import State
from backend.store.tables import Attempt, Job
from tests.conftest import Given
from tests.queue.conftest import HOST
from tests.queue.scripted_engine import ScriptedEngine

DAY_MS = 86_400_000
DELAY_MS = 30_000


def test_a_clock_that_was_set_back_holds_no_retry_up(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "RETRY_DELAYS_MS", {0: DELAY_MS})
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    job = service.enqueue("count", {}, HOST)
    with writing() as session:
        session.get_one(Job, job.id).not_before = now_ms() + DELAY_MS - 5000
    loop.turn()
    assert queries.job(job.id).state == State.QUEUED
    with writing() as session:
        session.get_one(Job, job.id).not_before = now_ms() + DAY_MS
    loop.turn()
    assert queries.job(job.id).state == State.STARTING


@pytest.mark.parametrize("set_by", [DAY_MS, -DAY_MS])
def test_a_clock_that_is_set_ends_no_run_and_lengthens_none(
    queue: Path, monkeypatch: pytest.MonkeyPatch, given: Given, set_by: int
) -> None:
    seconds = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: seconds[0])
    given(JOB_HOURS="1")
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    job = service.enqueue("count", {}, HOST)
    loop.turn()
    with writing() as session:
        session.query(Attempt).update({Attempt.started_at: now_ms()})
    loop.turn()
    monkeypatch.setattr(session_module, "now_ms", lambda: now_ms() + set_by)
    seconds[0] = 3500.0
    loop.turn()
    assert (queries.job(job.id).state, queries.job(job.id).desired) == (State.RUNNING, "run")
    seconds[0] = 3700.0
    loop.turn()
    assert queries.job(job.id).desired == "stop"


@pytest.mark.sqlite("its clock is that of the machine")
@pytest.mark.parametrize("set_by", [DAY_MS, -DAY_MS])
def test_a_supervisor_is_known_to_be_there_when_the_clock_has_been_set(
    queue: Path, monkeypatch: pytest.MonkeyPatch, set_by: int
) -> None:
    seconds = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: seconds[0])
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    loop.turn()
    monkeypatch.setattr(session_module, "now_ms", lambda: now_ms() + set_by)
    assert not scheduling.status().supervisor_alive
    seconds[0] = supervisor.BEAT_S + 1
    loop.turn()
    assert scheduling.status().supervisor_alive
