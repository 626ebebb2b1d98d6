"""Real processes that do what they should. What happens when they do not is in tests/faults. Two of
them are started as in production, the others forked from a warm process."""

import os
from pathlib import Path

import pytest

from backend.errors import ConfigError, ConflictError, ForbiddenError
from backend.queue import scheduling, service, supervisor
from backend.queue.actor import Actor
from backend.queue.artifacts import read_log
from backend.queue.engines import local
from backend.queue.engines.local import LocalEngine
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import frames, queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job
from jobs.reproduction import reproduce
from jobs.submit import submit
from tests.conftest import Given
from tests.queue.conftest import HOST, Wait, free_slots, running


@pytest.mark.fresh_process
def test_runs_to_the_end(wait: Wait) -> None:
    job = submit("count", {"steps": 3}, HOST, name="three")
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    job = queries.job(job.run)
    assert (job.done, job.total, job.stage, job.attempts_made) == (3, 3, "done", 1)
    assert job.peak_bytes and job.finished_at >= job.started_at >= job.queued_at
    assert [r.value for r in queries.results([job.id])] == [3]
    curves = frames.curves(job.id)
    assert curves[curves["family"] == "count"]["value"].tolist() == [0, 1, 2]
    assert "attempt 1" in read_log(job.run, 1)[0]
    assert [e.type for e in queries.events(job.id)] == ["queued", "running", "succeeded"]
    assert free_slots() == 1


def test_one_slot_runs_one_job_in_order(wait: Wait, loop: SupervisorLoop) -> None:
    first = submit("count", {}, HOST)
    second = submit("count", {"steps": 1}, HOST)
    urgent = submit("count", {"steps": 1}, HOST, priority=5)
    assert [j.id for j in scheduling.queued()] == [urgent.id, first.id, second.id]
    loop.turn()
    loop.turn()
    assert len(scheduling.status().live) == 1 and scheduling.status().position(second.id) == 2
    for job in (urgent, first, second):
        assert wait(job.id, State.SUCCEEDED)
    ends = [queries.job(j.id).finished_at for j in (urgent, first, second)]
    assert ends == sorted(ends)


def test_a_guests_run_that_takes_far_longer_than_it_may_is_stopped(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("count", {"steps": 1000}, HOST)
    wait(job.id, when=running(job.id))
    with writing() as session:
        session.get_one(Job, job.id).owner = "guest-1"
    monkeypatch.setattr(supervisor, "GUEST_OVERTIME_FACTOR", 0)
    assert wait(job.id, State.CANCELLED) == State.CANCELLED
    assert any(e.actor == supervisor.OVERTIME.name for e in queries.events(job.id))


def test_guests_may_look_but_not_touch(queue: Path) -> None:
    guest = Actor("passer-by")
    job = submit("count", {}, HOST)
    for deed in (
        lambda: submit("count", {}, guest),
        lambda: reproduce(job.run, guest),
        lambda: service.cancel([job.run], guest),
        lambda: service.resume([job.run], guest),
    ):
        with pytest.raises(ForbiddenError):
            deed()
    assert queries.job(job.id).state == State.QUEUED and len(queries.jobs()) == 1


def test_resume_refuses_what_waits_or_succeeded(wait: Wait) -> None:
    job = submit("count", {"steps": 1}, HOST)
    with pytest.raises(ConflictError, match="queued"):
        service.resume([job.run], HOST)
    wait(job.id, State.SUCCEEDED)
    with pytest.raises(ConflictError, match="succeeded"):
        service.resume([job.run], HOST)
    copy = reproduce(job.run, HOST)
    assert copy.id != job.id and copy.config == job.config and copy.parent == job.id


def test_the_stored_config_is_whole_and_bad_values_name_their_field(queue: Path) -> None:
    job = submit("count", {"steps": 2}, HOST)
    assert job.config == {
        "seed": 0,
        "threads": 0,
        "device": "auto",
        "steps": 2,
        "pause": 0.1,
        "dies_at": -1,
        "tears_at": -1,
        "fails_at": -1,
        "full_at": -1,
        "deaf": False,
    }
    with pytest.raises(ConfigError) as refused:
        submit("count", {"steps": 0}, HOST)
    assert refused.value.field == "steps"
    assert len(queries.jobs()) == 1


def test_every_change_wakes_the_supervisor(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[str] = []
    monkeypatch.setattr(service, "wake_supervisor", lambda: woken.append(queries.jobs()[0].state))
    job = submit("count", {"steps": 1}, HOST)
    service.run_next(job.run, HOST)
    service.cancel([job.run], HOST)
    service.resume([job.run], HOST)
    assert woken == ["queued", "queued", "cancelled", "queued"]  # once the change is committed


@pytest.mark.fresh_process
def test_settings_travel_with_the_job(
    queue: Path, wait: Wait, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    given(MODEL_DIRS='["~/models"]')
    job = submit("count", {"steps": 1}, HOST)
    monkeypatch.delenv("SLIMSCOPE_MODEL_DIRS")
    settings.cache_clear()
    home = str(Path.home() / "models")
    assert job.environment["settings"]["SLIMSCOPE_MODEL_DIRS"] == f'["{home}"]'
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED


def test_a_container_knows_its_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of another container of the same machine have the same boot, and other numbers."""
    engine, here = LocalEngine(1), local.reference(os.getpid())
    there = here | {"host": "another name"}
    assert [poll.state for poll in engine.poll([here, there])] == ["running", "running"]
    (tmp_path / "pid").symlink_to("pid:[4026532000]")
    monkeypatch.setattr(local, "PID_NAMESPACE", tmp_path / "pid")
    own = local.reference(os.getpid())
    states = [poll.state for poll in engine.poll([own, there])]
    assert states == ["running", "unknown"] and own["identity"] != here["identity"]
