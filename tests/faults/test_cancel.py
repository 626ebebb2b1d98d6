"""Cancelling: what waits, what runs, what does not listen, what has just finished."""

import time

import psutil
import pytest

from backend.errors import ConflictError
from backend.queue import service, supervisor
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.states import State
from jobs.submit import submit
from tests.conftest import Given
from tests.faults.conftest import until_dead
from tests.queue.conftest import HOST, Wait, beats, process_of, running


def test_cancel_waiting_running_and_ended(wait: Wait) -> None:
    job = submit("count", {"steps": 1000}, HOST)
    waiting = submit("count", {}, HOST)
    wait(job.id, when=running(job.id))
    assert service.cancel([waiting.run], HOST) == [State.CANCELLED]
    began = time.monotonic()
    service.cancel([job.run], HOST)
    assert wait(job.id, State.CANCELLED) == State.CANCELLED
    assert time.monotonic() - began < 10
    assert queries.attempts(job.id)[0].exit_code == 75
    with pytest.raises(ConflictError, match="It is cancelled already"):
        service.cancel([job.run], HOST)
    service.resume([job.run], HOST)
    wait(job.id, when=lambda: beats(job.id, 2))
    service.cancel([job.run], HOST)
    assert wait(job.id, State.CANCELLED) == State.CANCELLED


def test_a_deaf_job_is_killed_after_the_grace(
    wait: Wait, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    monkeypatch.setattr(supervisor, "KILL_AFTER_S", 0.2)
    given(STOP_GRACE="0.2")
    job = submit("count", {"steps": 1000, "deaf": True}, HOST)
    wait(job.id, when=running(job.id))
    process = process_of(job.id)
    service.cancel([job.run], HOST)
    assert wait(job.id, State.CANCELLED) == State.CANCELLED
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert "last checkpoint" in queries.events(job.id)[-1].text


def test_cancelling_twice_kills_at_once(wait: Wait) -> None:
    job = submit("count", {"steps": 1000, "deaf": True}, HOST)
    wait(job.id, when=running(job.id))
    service.cancel([job.run], HOST)
    service.cancel([job.run], HOST)
    assert queries.job(job.id).desired == "kill"
    assert wait(job.id, State.CANCELLED) == State.CANCELLED


def test_a_job_that_finishes_as_it_is_cancelled_has_succeeded(
    loop: SupervisorLoop, wait: Wait
) -> None:
    job = submit("count", {"steps": 1, "pause": 0}, HOST)
    loop.turn()
    until_dead(job.id)
    assert queries.attempts(job.id)[0].outcome == "succeeded"
    assert service.cancel([job.run], HOST) == [State.STARTING]
    assert wait(job.id, State.SUCCEEDED, State.CANCELLED) == State.SUCCEEDED
