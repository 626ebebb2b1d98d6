"""Disk space of runs, and the checkpoints that may be deleted."""

import threading
from pathlib import Path

import pytest

from backend.errors import ConflictError, ForbiddenError
from backend.printable import readable_bytes
from backend.queue import removal, upkeep
from backend.queue.actor import Actor
from backend.queue.artifacts import run_folder
from backend.queue.removal import (
    DAY_MS,
    DELETED_CHECKPOINTS,
    disk_use,
    free_expired,
    free_space,
    has_checkpoints,
    orphaned_folders,
)
from backend.queue.service import enqueue, resume
from backend.settings import settings
from backend.store import queries
from backend.store.session import now_ms, writing
from backend.store.states import State
from backend.store.tables import Job
from tests.queue.conftest import HOST

GUEST = Actor("guest-abc-1", "guest")


def ended(state: State = State.FAILED, days_ago: float = 0) -> Job:
    """A run with a log, a model, a checkpoint and a loose file."""
    job = enqueue("count", {"steps": 1}, HOST)
    with writing() as session:
        row = session.get_one(Job, job.id)
        row.state, row.finished_at = state, now_ms() - int(days_ago * DAY_MS)
    for name, size in (
        ("a1/log.txt", 10),
        ("a2/log.txt", 5),
        ("model/weights", 2000),
        ("work/step-0/done", 300),
        ("text-a.jsonl", 7),
    ):
        file = run_folder(job.run) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    (run_folder(job.run) / "link").symlink_to("/usr")
    return job


def history(job: Job) -> list[tuple[str, str, str]]:
    return [(e.type, e.actor, e.text) for e in queries.events(job.id)][1:]


def test_what_takes_space(queue: Path) -> None:
    use = disk_use(ended().run)
    assert use.pop("other files") == 7 + len("/usr")  # the link, not what it leads to
    assert use == {"logs": 15, "model": 2000, "checkpoints": 300}
    assert disk_use("count-9999") == {}
    sizes = (500, 2e6, 3.4e9, 5e12)
    assert [readable_bytes(int(n)) for n in sizes] == ["500 B", "2 MB", "3.4 GB", "5 TB"]


def test_an_ended_run_is_measured_once(queue: Path) -> None:
    live = enqueue("count", {"steps": 1}, HOST)
    failed, done = ended(), ended(State.SUCCEEDED)
    upkeep.measure_ended()
    upkeep.measure_ended()
    sizes = {job.id: job.disk_bytes for job in queries.jobs()}
    checkpoints = 300  # which the supervisor deletes where the run succeeded
    assert sizes == {live.id: None, failed.id: 2326, done.id: 2326 - checkpoints}
    assert [each[0] for each in history(failed)] == ["measured"]
    assert resume([failed.id], HOST)[0].disk_bytes is None
    assert [job.id for job in queries.largest(5)] == [done.id]


def test_a_host_frees_the_checkpoints_of_an_ended_run(queue: Path) -> None:
    job = ended()
    with pytest.raises(ForbiddenError):
        free_space(job.run, GUEST)
    assert has_checkpoints(job.run)
    assert free_space(job.run, HOST) == 300
    assert disk_use(job.run).keys() == {"logs", "model", "other files"}
    assert (
        queries.job(job.id).disk_bytes == 2026
        and not (run_folder(job.run) / DELETED_CHECKPOINTS).exists()
    )
    what = "300 B freed; resuming starts from the beginning"
    assert history(job) == [("checkpoints deleted", "mira", what)]
    with pytest.raises(ConflictError, match="no checkpoints"):
        free_space(job.run, HOST)


def test_a_run_that_is_queued_or_live_keeps_its_checkpoints(queue: Path) -> None:
    job = ended()
    resume([job.run], HOST)
    with pytest.raises(ConflictError, match="It is queued"):
        free_space(job.run, HOST)
    assert has_checkpoints(job.run)


def test_of_two_at_one_moment_one_comes_first(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints are set aside in the transaction that has read the state."""
    job, delete = ended(), removal.delete_folder
    resuming = threading.Thread(target=resume, args=(job.run, HOST))

    def resumed_meanwhile(folder: Path) -> None:
        if not resuming.ident:  # before the checkpoints are set aside
            resuming.start()
            resuming.join(0.2)
            assert resuming.is_alive()  # it waits for the transaction
        delete(folder)

    monkeypatch.setattr(removal, "delete_folder", resumed_meanwhile)
    free_space(job.run, HOST)
    resuming.join()
    assert [each[0] for each in history(job)] == ["checkpoints deleted", "resumed"]


def test_old_checkpoints_alone_expire(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSCOPE_KEEP_CHECKPOINTS_DAYS", "2")
    settings.cache_clear()
    old = [ended(state, 3) for state in (State.FAILED, State.CANCELLED, State.LOST)]
    young, done, waiting = ended(days_ago=1), ended(State.SUCCEEDED, 3), ended(State.QUEUED, 3)
    leftover = run_folder(young.run) / DELETED_CHECKPOINTS / "step-0"
    leftover.mkdir(parents=True)  # of a process that was killed
    free_expired()
    assert not any(has_checkpoints(job.run) for job in old) and not leftover.exists()
    assert all(has_checkpoints(job.run) for job in (young, done, waiting))
    assert all((run_folder(job.run) / "model" / "weights").exists() for job in old)
    what = "300 B freed after 2 days; resuming starts from the beginning"
    assert history(old[0]) == [("checkpoints deleted", "supervisor", what)]


def test_folders_that_no_run_knows(queue: Path) -> None:
    assert orphaned_folders() == []
    ended()
    (settings().artifacts / "sds-0099").mkdir()
    assert [folder.name for folder in orphaned_folders()] == ["sds-0099"]
