"""Real processes that do what they should, and rows that no process of ours would write."""

import os
from pathlib import Path

import pytest
from sqlalchemy import text

from backend.errors import ConflictError, ForbiddenError
from backend.queue import scheduling, service, supervisor, upkeep
from backend.queue.actor import Actor
from backend.queue.artifacts import delete_folder, read_log, run_folder, work_folder
from backend.queue.engines import local
from backend.queue.engines.local import LocalEngine
from backend.queue.launcher import job_environment, node_environment
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import frames, queries
from backend.store.session import writing
from backend.store.states import LIVE, State
from backend.store.tables import Job
from jobs.record import record
from jobs.reproduction import reproduce
from jobs.submit import submit
from tests.conftest import Given
from tests.plugins.job_kind import CountConfig
from tests.queue.conftest import HOST, Wait, change, free_slots, running


def test_runs_to_the_end(wait: Wait) -> None:
    job = submit("count", {"steps": 3}, HOST, name="three")
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    job = queries.job(job.run)
    assert job.config == CountConfig(steps=3).model_dump(mode="json")  # what is not given, too
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


def test_what_fails_in_a_turn_is_tried_again(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit("count", {"steps": 1, "pause": 0}, HOST).id
    with monkeypatch.context() as patch:
        patch.setattr("backend.queue.lifecycle.start_attempt", lambda *_: [][0])
        loop = SupervisorLoop(LocalEngine(1))
        with pytest.raises(IndexError):  # which `run_until_idle` waits after
            loop.turn()
    assert queries.job(job).state == State.QUEUED
    assert wait(job, State.SUCCEEDED) == State.SUCCEEDED


def test_a_guests_run_that_takes_far_longer_than_it_may_is_stopped(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("count", {"steps": 1000}, HOST)
    wait(job.id, when=running(job.id))
    change(Job, job.id, owner="guest-1")
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


def test_every_change_wakes_the_supervisor(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[str] = []
    monkeypatch.setattr(service, "wake_supervisor", lambda: woken.append(queries.jobs()[0].state))
    job = submit("count", {"steps": 1}, HOST)
    service.run_next(job.run, HOST)
    service.cancel([job.run], HOST)
    service.resume([job.run], HOST)
    assert woken == ["queued", "queued", "cancelled", "queued"]  # once the change is committed


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


# damaged rows -------------------------------------------------------------------------------------


DAMAGED = pytest.mark.sqlite("it stores values of any type")

DEEP = "[" * 100_000 + "]" * 100_000
QUEUED = {
    "an environment that is a list": ("environment", "[1]"),
    "no environment": ("environment", "null"),
    "settings that are a list": ("environment", '{"settings": [1]}'),
    "settings that are a number": ("environment", '{"settings": 7}'),
    "variables that are a text": ("environment", '{"variables": "HF_HOME"}'),
    "no config": ("config", "null"),
    "a config without end": ("config", DEEP),
    "a config of another type": ("config", '{"threads": [2]}'),
    "attempts without end": ("attempts_made", 2**63 - 1),
    "threads that are no number": ("config", '{"threads": "many"}'),
    "attempts that are no number": ("attempts_made", "many"),
}
UNSTARTABLE = ("environment", '{"settings": {"SLIMSCOPE_THREADS": "1\\u0000"}}')
LIVE_ONES = {
    "a reference that is a list": "[1]",
    "a reference without a process": "{}",
    "a process that is no number": '{"pid": "init", "identity": 3}',
    "a process of another type": '{"pid": [1], "identity": null}',
}


def stored(job: int, table: str, column: str, value: str | int) -> None:
    key = "id" if table == "jobs" else "job_id"
    with writing() as session:
        session.execute(
            text(f"UPDATE {table} SET {column} = :value WHERE {key} = :job"),
            {"value": value, "job": job},
        )


@DAMAGED
def test_a_queued_row_fails_alone(wait: Wait) -> None:
    *bad, good = (submit("count", {"steps": 1, "pause": 0}, HOST).id for _ in [*QUEUED, "good"])
    for run, damage in zip(bad, QUEUED, strict=True):
        stored(run, "jobs", *QUEUED[damage])
    assert wait(good, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    for run, damage in zip(bad, QUEUED, strict=True):
        row = queries.job(run)
        assert row.state in (State.FAILED, State.SUCCEEDED), damage
        if row.state == State.FAILED:
            assert row.error_text and [e.type for e in queries.events(run)][-1] == "failed", damage
        assert record(run)["id"] == row.run


@DAMAGED
def test_a_process_that_the_system_refuses_to_start_fails_its_run_alone(queue: Path) -> None:
    loop = SupervisorLoop(LocalEngine(1))
    bad = submit("count", {"steps": 1, "pause": 0}, HOST).id
    stored(bad, "jobs", *UNSTARTABLE)
    loop.turn()
    row = queries.job(bad)
    assert row.state == State.FAILED and row.error_text and free_slots() == 1
    assert [e.type for e in queries.events(bad)][-1] == "failed" and record(bad)["id"] == row.run


@DAMAGED
@pytest.mark.parametrize("damage", LIVE_ONES)
def test_a_row_at_work_stops_no_other(wait: Wait, loop: SupervisorLoop, damage: str) -> None:
    bad = submit("count", {"steps": 1000}, HOST).id
    wait(bad, when=running(bad))
    process = queries.attempts(bad)[0].engine_ref
    stored(bad, "attempts", "engine_ref", LIVE_ONES[damage])
    good = submit("count", {"steps": 1, "pause": 0}, HOST).id
    try:
        assert wait(good, State.SUCCEEDED) == State.SUCCEEDED
        assert queries.job(bad).state not in LIVE
    finally:
        loop.engine.kill(process or {})


VICTIMS = ("/x/victim", "../../artifacts/statistics", "..", "sds/../..", "", "sds\0", "SDS", "é")


@DAMAGED
@pytest.mark.parametrize("kind", VICTIMS)
def test_a_kind_is_no_path(queue: Path, loop: SupervisorLoop, tmp_path: Path, kind: str) -> None:
    job = service.enqueue("count", {}, HOST)
    with writing() as session:
        row = session.get_one(Job, job.id)
        row.kind = kind.replace("/x", str(tmp_path)) if kind.startswith("/") else kind
        row.state, row.finished_at = State.SUCCEEDED, 1
    victims = [tmp_path / f"victim-{job.id:04d}" / "work", settings().artifacts / "statistics"]
    for victim in victims:
        victim.mkdir(parents=True)
    name = queries.job(job.id).run
    assert name == f"damaged-{job.id:04d}" and queries.job(name).damaged
    work_folder(name).mkdir(parents=True)
    loop.clear()
    upkeep.measure_ended()
    assert all(victim.is_dir() for victim in victims) and not work_folder(name).exists()
    assert run_folder(name).parent == settings().artifacts


@DAMAGED
def test_no_folder_elsewhere_is_deleted(queue: Path, tmp_path: Path) -> None:
    outside, artifacts = tmp_path / "outside", settings().artifacts
    (outside / "work").mkdir(parents=True)
    artifacts.mkdir(exist_ok=True)
    (artifacts / "sds-0001").symlink_to(outside)
    for folder in (outside, artifacts / ".." / "outside", artifacts, work_folder("sds-0001")):
        delete_folder(folder)
    assert (outside / "work").is_dir() and artifacts.is_dir()


@DAMAGED
def test_no_name_of_a_row_is_a_variable_of_a_process(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/ours")
    names = ("PYTHONPATH", "LD_PRELOAD", "PATH", "PYTHONSTARTUP", "OMP_NUM_THREADS")
    hostile = dict.fromkeys((*names, "SLIMSCOPE_DATABASE_URL", "SLIMSCOPE_DATA_DIR"), "/evil")
    found, _ = job_environment(hostile, hostile)
    assert "/evil" not in found.values() and found["PATH"] == "/ours"
    assert "/evil" not in node_environment(hostile, hostile).values()
    kept, _ = job_environment({"SLIMSCOPE_THREADS": "3"}, {"CUDA_VISIBLE_DEVICES": "1"})
    assert (kept["SLIMSCOPE_THREADS"], kept["CUDA_VISIBLE_DEVICES"]) == ("3", "1")
