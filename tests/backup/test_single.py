"""A run leaves one data folder and comes whole into another, or not at all."""

from __future__ import annotations

import json
import sqlite3
import tarfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from backend.backup import archive as layout
from backend.backup.archive import DATABASE, ArchivedFile
from backend.backup.reading import open_archive
from backend.backup.single import export_run, import_run
from backend.backup.writing import SourceFile, write_archive
from backend.errors import BackupError, ConflictError, ForbiddenError, NotFoundError
from backend.queue.folders import log_file, run_folder
from backend.queue.roles import Actor
from backend.queue.service import enqueue
from backend.statistics.tensors import TensorProfile
from backend.store import frames, queries, tensors
from backend.store.migrate import upgrade
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Artifact, Attempt, Job, MetricPoint, Result
from jobs.record import record
from jobs.runtime.rows import profile_row, upsert
from tests.queue.conftest import HOST

Move = Callable[[Path], None]
OWN = (
    "id",
    "owner",
    "artifacts",
    "disk_bytes",
    "finished_at",
    "environment",
    "queued_at",
)  # of where it is


@pytest.fixture
def ended(queue: Path) -> Job:
    """A run with figures, a profile and files, as its process would have left it."""
    times = {"created_at": 1, "queued_at": 1, "launched_at": 1, "started_at": 2, "ended_at": 3}
    enqueue("count", {"steps": 1}, HOST)  # so that numbers differ
    job = enqueue("count", {"steps": 3}, HOST)
    files = ("a1/log.txt", "model/config.json", "model/model.safetensors", "work/left/x.bin")
    for name in files:
        file = run_folder(job.run) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content")
    profile = TensorProfile("a.weight", 0, "a", "dense", "energy", np.arange(4.0))
    points = [{"name": "count", "step": n, "at": n, "value": n / 2} for n in range(3)]
    figure = {"stage": "run", "metric": "total", "value": 3.0, "details": {"of": "3"}}
    with writing() as session:
        rows = [(MetricPoint, {"job_id": job.id, **point}) for point in points]
        rows += [(Result, {"job_id": job.id, "stderr": None, "n": 3, **figure})]
        upsert(session.connection(), [*rows, profile_row(job.id, profile)])
        session.add(
            Artifact(job_id=job.id, kind="model", path=f"{job.run}/model", bytes=14, created_at=1)
        )
        attempt = {key: times[key] for key in ("launched_at", "started_at", "ended_at")}
        session.add(Attempt(job_id=job.id, n=1, token="secret", engine="local", **attempt))
        row = session.get_one(Job, job.id)
        row.state, row.attempts_made, row.finished_at = State.SUCCEEDED, 1, 3
        row.environment = {"host": "here", "settings": {"x": "/home/me"}, "threads": 2}
    return queries.job(job.id)


def exported(job: Job, folder: Path, **options: bool) -> Path:
    target = folder / f"{job.run}.tar"
    export_run(job.run, target, **options)
    return target


@pytest.mark.sqlite("another folder is another database")
def test_a_run_is_the_same_elsewhere(ended: Job, tmp_path: Path, move_to: Move) -> None:
    known, curves = record(ended.run), frames.curves(ended.run)
    profile = tensors.profiles(ended.run, "a.weight")[0].values
    log = log_file(ended.run, 1).read_text()
    file = exported(ended, tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600

    move_to(tmp_path / "other")
    upgrade()
    with pytest.raises(NotFoundError):
        queries.job(ended.run)
    job = import_run(file, Actor("somebody", "host"))
    assert job.run == "count-0001" and job.owner == "somebody" and job.state == State.SUCCEEDED
    found = record(job.run)
    assert {k: v for k, v in found.items() if k not in OWN} == {
        k: v for k, v in known.items() if k not in OWN
    }
    assert frames.curves(job.run).equals(curves)
    assert np.array_equal(tensors.profiles(job.run, "a.weight")[0].values, profile)
    assert log_file(job.run, 1).read_text() == log
    assert [x.path for x in queries.artifacts(job.run)] == [f"{job.run}/model"]
    files = sorted(x.name for x in run_folder(job.run).rglob("*") if x.is_file())
    assert files == ["config.json", "log.txt"]  # neither weights nor checkpoints
    last = queries.events(job.run)[-1]
    assert (last.type, last.actor) == ("imported", "somebody") and ended.run in last.text
    assert job.environment == {"threads": 2}
    assert queries.attempts(job.run)[0].token != "secret"
    again = import_run(file, HOST)
    assert again.run == "count-0002"  # once more: another run
    assert (
        import_run(exported(again, tmp_path / "other"), HOST).run == "count-0003"
    )  # and from there


def test_weights_come_along_if_asked_for(ended: Job, tmp_path: Path, move_to: Move) -> None:
    file = exported(ended, tmp_path, weights=True)
    move_to(tmp_path / "other")
    upgrade()
    job = import_run(file, HOST)
    assert (run_folder(job.run) / "model" / "model.safetensors").read_text() == "content"
    assert not (run_folder(job.run) / "work").exists()


def test_who_may_not_and_what_cannot(ended: Job, tmp_path: Path) -> None:
    file = exported(ended, tmp_path)
    with pytest.raises(ForbiddenError):
        import_run(file, Actor("guest-1", "guest"))
    with pytest.raises(BackupError, match="exists already"):
        export_run(ended.run, file)
    with writing() as session:
        session.get_one(Job, ended.id).state = State.RUNNING
    with pytest.raises(ConflictError, match="running"):
        export_run(ended.run, tmp_path / "live.tar")


def repacked(file: Path, folder: Path, change: Callable[[sqlite3.Connection], object]) -> Path:
    """The same archive with a changed database, its checksums right."""
    folder.mkdir()
    with open_archive(file, "") as archive:
        archive.unpack(folder, layout.silent)
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        change(database)
        database.commit()
    files = [
        SourceFile(x.relative_to(folder).as_posix(), x, x.stat().st_size)
        for x in folder.rglob("*") if x.is_file()
    ]  # fmt: skip
    write_archive(
        folder.with_suffix(".tar"), files, layout.silent, weights=False, checkpoints=False
    )
    return folder.with_suffix(".tar")


BOMB = zlib.compress(bytes(2**27))
CHANGES: dict[str, tuple[str, tuple[object, ...], str]] = {
    "outside": ("UPDATE artifacts SET path = ?", ("../../etc/passwd",), "outside the folder"),
    "another run": ("UPDATE artifacts SET path = ?", ("sds-0001/model",), "outside the folder"),
    "climbing": ("UPDATE artifacts SET path = path || ?", ("/../../x",), "outside the folder"),
    "bomb": ("UPDATE tensor_profiles SET 'values' = ?", (BOMB,), "cannot be unpacked"),
    "no zlib": ("UPDATE tensor_profiles SET 'values' = ?", (b"junk",), "cannot be unpacked"),
    "live": ("UPDATE jobs SET state = ?", ("running",), "one run that has ended"),
    "none": ("DELETE FROM jobs WHERE id > ?", (0,), "one run that has ended"),
    "bad config": ("UPDATE jobs SET config = ?", ("{",), "one run that has ended"),
    "table gone": ("ALTER TABLE results RENAME TO other -- ?", (), "cannot be read"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_belong_is_refused_and_leaves_nothing(
    ended: Job, tmp_path: Path, name: str
) -> None:
    statement, values, said = CHANGES[name]
    bad = repacked(
        exported(ended, tmp_path), tmp_path / "bad", lambda d: d.execute(statement, values)
    )
    before = len(queries.jobs())
    with pytest.raises(BackupError, match=said):
        import_run(bad, HOST)
    assert len(queries.jobs()) == before
    assert not [*run_folder("x").parent.glob("count-0003")]


def test_a_damaged_file_is_refused(ended: Job, tmp_path: Path) -> None:
    file = exported(ended, tmp_path)
    data = bytearray(file.read_bytes())
    data[data.index(b"SQLite format 3") + 200] ^= 1
    file.write_bytes(data)
    with pytest.raises(BackupError, match="checksum"):
        import_run(file, HOST)
    with pytest.raises(BackupError, match="no file"):
        import_run(tmp_path / "nothing.tar", HOST)


def test_a_newer_file_is_refused_and_an_older_one_migrated(
    ended: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = exported(ended, tmp_path)
    with tarfile.open(file) as archive:
        member = archive.extractfile("manifest.json")
        assert member is not None
        manifest = json.loads(member.read())
    assert {ArchivedFile.model_validate(x).bytes for x in manifest["files"].values()}
    monkeypatch.setattr("backend.backup.reading.newest_revision", lambda: "0001")
    with pytest.raises(BackupError, match="newer"):
        import_run(file, HOST)
    monkeypatch.undo()

    def age(database: sqlite3.Connection) -> None:
        database.execute("DROP TABLE reports")
        database.execute("DROP TABLE votes")
        for column in ("lane", "purged", "archived_at", "removed_at"):
            database.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
        database.execute("DROP INDEX ix_jobs_disk_bytes")
        database.execute("ALTER TABLE jobs DROP COLUMN disk_bytes")
        database.execute("UPDATE alembic_version SET version_num = '0006'")

    monkeypatch.setattr("backend.backup.writing.newest_revision", lambda: "0006")
    old = repacked(file, tmp_path / "old", age)
    monkeypatch.undo()
    assert import_run(old, HOST).state == State.SUCCEEDED
