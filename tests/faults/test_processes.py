"""The process of a job dies, hangs, does not listen, or is not the one that was started."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy.exc import OperationalError

from backend.errors import ConflictError
from backend.queue import service, supervisor
from backend.queue.artifacts import read_log
from backend.queue.engines.base import LaunchRequest
from backend.queue.engines.local import LocalEngine, identity
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.session import writing
from backend.store.states import Exit, State
from backend.store.tables import Attempt
from jobs.runtime.main import main
from jobs.submit import submit
from tests.conftest import Given
from tests.faults.conftest import until_dead
from tests.queue.conftest import HOST, Wait, beats, free_slots, process_of, running
from tests.waiting import until


def test_a_job_that_always_dies_is_lost_with_a_hint(wait: Wait) -> None:
    job = submit("count", {"steps": 500}, HOST)
    for attempt in (1, 2, 3):
        wait(job.id, when=lambda n=attempt: beats(job.id, n))
        process_of(job.id).kill()
    assert wait(job.id, State.LOST) == State.LOST
    error = queries.job(job.id).error
    assert "signal 9" in error["why"] and "memory" in error["do"]
    assert free_slots() == 1


def test_an_error_fails_without_retry_and_can_be_resumed(wait: Wait) -> None:
    job = submit("count", {"steps": 4, "fails_at": 2}, HOST)
    assert wait(job.id, State.FAILED) == State.FAILED
    failed = queries.job(job.id)
    assert failed.error == {
        "what": "The count failed.",
        "why": "It was told to.",
        "do": "Resume it.",
    }
    assert failed.attempts_made == 1
    assert "Traceback" in read_log(job.run, 1)[0]
    assert free_slots() == 1
    service.resume([job.run], HOST)
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    assert queries.job(job.id).error is None


def test_a_late_process_of_a_given_up_attempt_is_fenced(
    wait: Wait, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = submit("count", {"steps": 1, "pause": 0}, HOST)
    wait(job.id, State.SUCCEEDED)
    attempt = queries.attempts(job.id)[0].id
    monkeypatch.setattr(sys, "argv", ["main", "--attempt", f"{attempt}"])
    assert main() == Exit.FENCED and "Another attempt" in capsys.readouterr().out


def test_a_process_that_lost_its_token_ends_itself(wait: Wait) -> None:
    job = submit("count", {"steps": 1000}, HOST)
    wait(job.id, when=running(job.id))
    with writing() as session:
        session.query(Attempt).update({Attempt.token: "stolen"})
    assert process_of(job.id).wait(10) in (76, None)


def test_a_reused_pid_counts_as_dead() -> None:
    engine = LocalEngine(1)
    me = psutil.Process()
    ref = {"pid": me.pid, "identity": identity(me.pid) + "0"}
    assert engine.poll([ref])[0].state == "exited"
    engine.kill(ref)  # must not harm the stranger: this very process


def test_leftover_children_are_ended_with_their_leader(tmp_path: Path) -> None:
    engine = LocalEngine(1)
    script = "import subprocess,time; subprocess.Popen(['sleep','300']); time.sleep(300)"
    argv = (sys.executable, "-c", script)
    ref = engine.launch(
        LaunchRequest(1, argv, dict(os.environ), str(tmp_path / "log"), str(tmp_path))
    )
    leader = psutil.Process(ref["pid"])
    until(leader.children)
    (child,) = leader.children()
    os.kill(ref["pid"], signal.SIGKILL)
    until(lambda: engine.poll([ref])[0].state == "exited")
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_stands_still_is_not_started_again(wait: Wait, loop: SupervisorLoop) -> None:
    job = submit("count", {"steps": 8, "pause": 0.2}, HOST)
    wait(job.id, when=running(job.id, 0))
    process = process_of(job.id)
    while True:
        process.send_signal(signal.SIGSTOP)  # as when a laptop is closed
        with suppress(OperationalError), writing() as session:
            session.query(Attempt).update({Attempt.beat_at: 0})
            break
        process.send_signal(signal.SIGCONT)  # it was writing, and kept its row
    for _ in range(3):
        loop.turn()
    assert process_of(job.id) == process
    until(lambda: process.status() == psutil.STATUS_STOPPED)  # once its threads get a core
    process.send_signal(signal.SIGCONT)
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    assert queries.job(job.id).attempts_made == 1


def test_a_process_that_hangs_is_not_started_again_and_ends_with_its_time(
    wait: Wait, loop: SupervisorLoop, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    monkeypatch.setattr(supervisor, "KILL_AFTER_S", 0.2)
    job = submit("count", {"pause": 1000}, HOST)
    wait(job.id, State.RUNNING)
    begun = queries.attempts(job.id)[0].beat_at
    wait(job.id, when=lambda: queries.attempts(job.id)[0].beat_at != begun)  # it hangs, and beats
    given(JOB_HOURS="1e-6", STOP_GRACE="0.2")
    assert wait(job.id, State.CANCELLED) == State.CANCELLED
    assert queries.job(job.id).attempts_made == 1 and free_slots() == 1
    events = queries.events(job.id)
    assert "killed (signal 9)" in events[-1].text
    assert any(event.actor == supervisor.OVERTIME.name for event in events)


# cancel -------------------------------------------------------------------------------------------


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
