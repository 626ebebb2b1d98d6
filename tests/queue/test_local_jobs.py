"""Real processes, really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from backend.errors import ComputeError, ConfigError, ConflictError, ForbiddenError
from backend.queue import launcher, service, supervisor
from backend.queue.engines.local import LocalEngine, identity
from backend.queue.folders import read_log, work_folder
from backend.queue.service import Actor
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import frames, queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Attempt, Job, Slot
from jobs.replay import replay
from jobs.submit import submit
from tests.queue.conftest import HOST, Wait, process_of


def running(run: int, step: int = 1):
    """A condition: the run has finished at least `step` steps."""
    return lambda: (work_folder(queries.job(run).run) / f"step-{step}").exists()


def free_slots() -> int:
    with writing() as session:
        return session.query(Slot).where(Slot.attempt_id.is_(None)).count()


def test_runs_to_the_end(wait: Wait) -> None:
    job = submit("count", {"steps": 3}, HOST, name="three")
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    job = queries.job(job.run)
    assert (job.done, job.total, job.stage, job.attempts_made) == (3, 3, "done", 1)
    assert job.peak_bytes and job.finished_at >= job.started_at >= job.queued_at
    assert [r.value for r in queries.results([job.id])] == [3]
    curves = frames.curves(job.id)
    assert curves[curves["name"] == "count"]["value"].tolist() == [0, 1, 2]
    assert "attempt 1" in read_log(job.run, 1)[0]
    assert [e.type for e in queries.events(job.id)] == ["queued", "running", "succeeded"]
    assert free_slots() == 1


def test_one_slot_runs_one_job_in_order(wait: Wait, loop: SupervisorLoop) -> None:
    first = submit("count", {}, HOST)
    second = submit("count", {"steps": 1}, HOST)
    urgent = submit("count", {"steps": 1}, HOST, priority=5)
    assert [j.id for j in queries.queued()] == [urgent.id, first.id, second.id]
    loop.turn()
    loop.turn()
    assert len(queries.status().live) == 1 and queries.status().position(second.id) == 2
    for job in (urgent, first, second):
        assert wait(job.id, State.SUCCEEDED)
    ends = [queries.job(j.id).finished_at for j in (urgent, first, second)]
    assert ends == sorted(ends)


def test_a_killed_job_resumes_behind_its_last_checkpoint(wait: Wait) -> None:
    job = submit("count", {"steps": 8}, HOST)
    wait(job.id, when=running(job.id, 2))
    process_of(job.id).kill()
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    first, second = queries.attempts(job.id)
    assert first.outcome is None and second.outcome == "succeeded"
    assert int(second.resumed_from.removeprefix("step-")) >= 2
    curves = dict(list(frames.curves(job.id).groupby("name")["value"]))
    assert curves["count"].tolist() == list(range(8))
    assert curves["attempt"].tolist()[:3] == [1, 1, 1]  # finished work was not done again
    assert curves["attempt"].tolist()[-1] == 2


def test_a_job_that_always_dies_is_lost_with_a_hint(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.queue.lifecycle.RETRY_DELAYS_MS", {})
    job = submit("count", {"steps": 500}, HOST)
    for attempt in (1, 2, 3):
        wait(job.id, when=lambda n=attempt: _beats(job.id, n))
        process_of(job.id).kill()
    assert wait(job.id, State.LOST) == State.LOST
    error = queries.job(job.id).error
    assert "signal 9" in error["why"] and "memory" in error["do"]
    assert free_slots() == 1


def _beats(run: int, n: int) -> bool:
    attempts = queries.attempts(run)
    return len(attempts) == n and attempts[-1].started_at is not None


def test_an_error_fails_without_retry_and_can_be_resumed(wait: Wait) -> None:
    job = submit("count", {"steps": 4, "fails_at": 2}, HOST)
    assert wait(job.id, State.FAILED) == State.FAILED
    failed = queries.job(job.id)
    assert failed.error == {
        "what": "The count failed.", "why": "It was told to.", "do": "Resume it.",
    }  # fmt: skip
    assert failed.attempts_made == 1
    assert "Traceback" in read_log(job.run, 1)[0]
    service.resume(job.run, HOST)
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    assert queries.job(job.id).error is None


def test_cancel_waiting_running_and_ended(wait: Wait) -> None:
    job = submit("count", {"steps": 1000}, HOST)
    waiting = submit("count", {}, HOST)
    wait(job.id, when=running(job.id))
    assert service.cancel(waiting.run, HOST) == State.CANCELLED
    began = time.monotonic()
    service.cancel(job.run, HOST)
    assert wait(job.id, State.CANCELLED) == State.CANCELLED
    assert time.monotonic() - began < 10
    assert queries.attempts(job.id)[0].exit_code == 75
    with pytest.raises(ConflictError, match="It is cancelled already"):
        service.cancel(job.run, HOST)
    service.resume(job.run, HOST)
    wait(job.id, when=lambda: _beats(job.id, 2))
    service.cancel(job.run, HOST)
    assert wait(job.id, State.CANCELLED) == State.CANCELLED


def test_a_deaf_job_is_killed_after_the_grace(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "KILL_AFTER_S", 0.5)
    job = submit("count", {"steps": 1000, "deaf": True}, HOST)
    wait(job.id, when=running(job.id))
    process = process_of(job.id)
    service.cancel(job.run, HOST)
    assert wait(job.id, State.CANCELLED) == State.CANCELLED
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert "last checkpoint" in queries.events(job.id)[-1].text


def test_cancelling_twice_kills_at_once(wait: Wait) -> None:
    job = submit("count", {"steps": 1000, "deaf": True}, HOST)
    wait(job.id, when=running(job.id))
    service.cancel(job.run, HOST)
    service.cancel(job.run, HOST)
    assert queries.job(job.id).desired == "kill"
    assert wait(job.id, State.CANCELLED) == State.CANCELLED


def test_a_new_supervisor_adopts_the_running_process(wait: Wait) -> None:
    job = submit("count", {"steps": 30}, HOST)
    wait(job.id, when=running(job.id))
    before = process_of(job.id).pid
    successor = SupervisorLoop(LocalEngine(1))  # knows nothing but the database
    successor.turn()
    assert process_of(job.id).pid == before and queries.job(job.id).state == State.RUNNING
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    assert queries.job(job.id).attempts_made == 1


def test_dying_between_claim_and_start_loses_nothing(
    wait: Wait, loop: SupervisorLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("count", {"steps": 1}, HOST)

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalEngine, "launch", power_cut)
        loop.turn()
    assert queries.job(job.id).state == State.STARTING
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    assert [a.outcome for a in queries.attempts(job.id)] == ["never started", "succeeded"]
    assert queries.job(job.id).retries_left == service.RETRIES


def test_a_late_process_of_a_given_up_attempt_is_fenced(wait: Wait) -> None:
    job = submit("count", {"steps": 1}, HOST)
    wait(job.id, State.SUCCEEDED)
    late = subprocess.run(
        [
            sys.executable,
            "-m",
            "jobs.runtime.main",
            "--attempt",
            str(queries.attempts(job.id)[0].id),
        ],
        env={**os.environ, "SLIMSCOPE_DATA_DIR": str(settings().root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert late.returncode == 76 and "Another attempt" in late.stdout


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
    assert engine.poll(ref).state == "exited"
    engine.kill(ref)  # must not harm the stranger: this very process


def test_leftover_children_are_ended_with_their_leader(tmp_path: Path) -> None:
    from backend.queue.engines.base import LaunchRequest

    engine = LocalEngine(1)
    script = "import subprocess,time; subprocess.Popen(['sleep','300']); time.sleep(300)"
    argv = (sys.executable, "-c", script)
    ref = engine.launch(
        LaunchRequest(1, argv, dict(os.environ), str(tmp_path / "log"), str(tmp_path))
    )
    children: list[psutil.Process] = []
    while not children:
        children = psutil.Process(ref["pid"]).children()
    os.kill(ref["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while engine.poll(ref).state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.poll(ref).state == "exited"
    assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE


def test_a_guests_run_that_takes_far_longer_than_it_may_is_stopped(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("count", {"steps": 1000}, HOST)
    wait(job.id, when=running(job.id))
    with writing() as session:
        session.get_one(Job, job.id).owner = "guest-1"
    monkeypatch.setattr(supervisor, "LENIENCE", 0)
    assert wait(job.id, State.CANCELLED) == State.CANCELLED
    assert any(e.actor == supervisor.OVERTIME.name for e in queries.events(job.id))


def test_guests_may_look_but_not_touch(queue: Path) -> None:
    guest = Actor("passer-by")
    job = submit("count", {}, HOST)
    for deed in (
        lambda: submit("count", {}, guest),
        lambda: replay(job.run, guest),
        lambda: service.cancel(job.run, guest),
        lambda: service.resume(job.run, guest),
    ):
        with pytest.raises(ForbiddenError):
            deed()
    assert queries.job(job.id).state == State.QUEUED and len(queries.jobs()) == 1


def test_resume_refuses_what_waits_or_succeeded(wait: Wait) -> None:
    job = submit("count", {"steps": 1}, HOST)
    with pytest.raises(ConflictError, match="queued"):
        service.resume(job.run, HOST)
    wait(job.id, State.SUCCEEDED)
    with pytest.raises(ConflictError, match="succeeded"):
        service.resume(job.run, HOST)
    copy = replay(job.run, HOST)
    assert copy.id != job.id and copy.config == job.config and copy.parent == job.id


def test_the_stored_config_is_whole_and_bad_values_name_their_field(queue: Path) -> None:
    job = submit("count", {"steps": 2}, HOST)
    assert job.config == {
        "seed": 0, "threads": 0, "device": "auto", "steps": 2, "pause": 0.1, "dies_at": -1,
        "fails_at": -1, "full_at": -1, "deaf": False,
    }  # fmt: skip
    with pytest.raises(ConfigError) as refused:
        submit("count", {"steps": 0}, HOST)
    assert refused.value.field == "steps"
    assert len(queries.jobs()) == 1


def test_the_supervisor_process_is_alone_and_leaves_when_idle(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_IDLE_EXIT", "1")
    job = submit("count", {"steps": 2}, HOST)
    launcher.wake_supervisor()
    deadline = time.monotonic() + 40
    while queries.job(job.id).state != State.SUCCEEDED and time.monotonic() < deadline:
        time.sleep(0.1)
    assert queries.job(job.id).state == State.SUCCEEDED
    assert queries.status().supervisor_alive
    while launcher.is_alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not launcher.is_alive()


def test_every_change_of_the_queue_wakes_the_supervisor(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(service, "wake_supervisor", lambda: woken.append(queries.jobs()[0].state))
    job = submit("count", {"steps": 1}, HOST)
    service.run_next(job.run, HOST)
    service.cancel(job.run, HOST)
    service.resume(job.run, HOST)
    assert woken == ["queued", "queued", "cancelled", "queued"]  # once the change is committed


def test_one_supervisor_is_started_however_often_it_is_asked_for(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def popen(*words: object, **_: object) -> subprocess.Popen[bytes]:
        begun.append(started([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return begun[-1]

    started = subprocess.Popen
    monkeypatch.setattr(launcher.subprocess, "Popen", popen)
    (queue / ".slimscope").mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        launcher.wake_supervisor()
    assert len(begun) == 1
    begun[0].kill()
    begun[0].communicate()
    launcher.wake_supervisor()
    assert len(begun) == 2, "one that died is not waited for"
    begun[1].kill()
    begun[1].communicate()


def test_a_full_disk_and_odd_values_stop_neither_beats_nor_figures(
    wait: Wait, monkeypatch: pytest.MonkeyPatch, loop: SupervisorLoop
) -> None:
    from jobs.runtime import context as contexts

    monkeypatch.setattr(LocalEngine, "launch", lambda *_: identity_of_this_process())
    job = submit("count", {}, HOST)
    loop.turn()
    context = contexts.claim(queries.attempts(job.id)[0].id)
    context.metric("loss", float("nan"), 1)
    context.metric("loss", 2.0, 2)
    with pytest.raises(ComputeError, match="is nan"):
        context.result("run", "total", float("nan"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(contexts, "BEAT_S", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(context, "_write", full)
        patch.setattr("builtins.print", full)
        context.start()
        time.sleep(0.3)
    service.cancel(job.run, HOST)
    deadline = time.monotonic() + 20
    while not context.should_stop() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert context.should_stop()  # it beats again, and hears
    context.finish("stopped")
    assert frames.curves(job.id)["value"].tolist() == [2.0]


def identity_of_this_process() -> dict[str, object]:
    return {"pid": os.getpid(), "identity": identity(os.getpid())}


def test_settings_travel_with_the_job(
    queue: Path, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_MODEL_DIRS", '["~/models"]')
    settings.cache_clear()
    job = submit("count", {"steps": 1}, HOST)
    monkeypatch.delenv("SLIMSCOPE_MODEL_DIRS")
    settings.cache_clear()
    home = str(Path.home() / "models")
    assert job.environment["settings"]["SLIMSCOPE_MODEL_DIRS"] == f'["{home}"]'
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED


def test_a_job_that_comes_as_the_supervisor_leaves_is_not_forgotten(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[int] = []

    def late() -> None:
        if not jobs:
            jobs.append(submit("count", {"steps": 1}, HOST).id)
            assert launcher.is_alive()  # so nobody starts another one

    monkeypatch.setattr(supervisor, "shrink_write_ahead_log", late)
    monkeypatch.setattr(supervisor, "SHRINK_LOG_S", 10**9)
    monkeypatch.setenv("SLIMSCOPE_IDLE_EXIT", "0.1")
    settings.cache_clear()
    supervisor.main()
    assert queries.job(jobs[0]).state == State.SUCCEEDED
