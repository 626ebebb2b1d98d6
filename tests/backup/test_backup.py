"""Backups are written while jobs run, and are restored completely or not at all."""

import hashlib
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.backup import reading, writing
from backend.backup.reading import restore_backup
from backend.backup.writing import ArchivedFile, Manifest, write_backup
from backend.errors import BackupError, ConflictError
from backend.queue.artifacts import log_file, run_folder, work_folder
from backend.queue.removal import has_checkpoints
from backend.queue.service import enqueue
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import newest_revision
from backend.store.session import writing as transaction
from backend.store.states import State
from backend.store.tables import Attempt, Job
from jobs.record import record
from jobs.serving.keys import PREFIX, all_keys, key_name
from tests.queue.conftest import HOST, Wait

Move = Callable[[Path], None]


def put(run: str, name: str, content: str = "x") -> Path:
    """Write a file of a run."""
    file = run_folder(run) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def test_a_run_goes_on_from_a_backup_taken_while_it_ran(
    queue: Path, tmp_path: Path, wait: Wait, move_to: Move
) -> None:
    done = enqueue("count", {"steps": 1, "pause": 0}, HOST)
    assert wait(done.id, State.SUCCEEDED) == State.SUCCEEDED
    live = enqueue("count", {"steps": 6, "pause": 0.1}, HOST)
    wait(live.id, when=lambda: (work_folder(live.run) / "step-1").exists())
    told: list[tuple[int, int]] = []
    manifest = write_backup(
        tmp_path / "it.tar", checkpoints=True, progress=lambda *shown: told.append(shown)
    )
    assert told == sorted(told) and told[-1][0] == manifest.bytes
    known = record(done.run)
    assert queries.job(live.id).state in (State.STARTING, State.RUNNING)  # it was not disturbed
    assert wait(live.id, State.SUCCEEDED) == State.SUCCEEDED

    move_to(tmp_path / "other")
    restore_backup(tmp_path / "it.tar")
    assert not {"settings", "variables"} & record(done.run)["environment"].keys()
    assert record(done.run) | {"environment": {}} == known | {"environment": {}}
    assert log_file(done.run, 1).read_text() and queries.job(live.id).state == State.QUEUED
    assert wait(live.id, State.SUCCEEDED) == State.SUCCEEDED
    made = {r.step: r.value for r in queries.curve_points(live.id) if r.family == "attempt"}
    assert made[0] == made[1] == 1 and made[5] == 2  # what was finished was not repeated


def test_no_checkpoint_is_ahead_of_the_figures(
    queue: Path, tmp_path: Path, move_to: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = live_job().run
    put(run, "work/training/step.txt", "1")
    copy = writing.copy_database

    def copy_late(target: Path) -> None:
        copy(target)
        shutil.rmtree(work_folder(run) / "training")
        put(run, "work/training/step.txt", "2")
        put(run, "work/next/step.txt")

    monkeypatch.setattr(writing, "copy_database", copy_late)
    write_backup(tmp_path / "it.tar", checkpoints=True)
    assert [*settings().artifacts.iterdir()] == [run_folder(run)]
    move_to(tmp_path / "other")
    restore_backup(tmp_path / "it.tar")
    assert [file.name for file in work_folder(run).iterdir()] == ["training"]
    assert (work_folder(run) / "training/step.txt").read_text() == "1"


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_restored_run_is_not_taken_for_the_process_that_still_runs(
    queue: Path, tmp_path: Path, move_to: Move, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    """In a backup made by hand, nobody has written down that live runs are interrupted."""
    last, other = live_job(retries_left=0), live_job()
    put(other.run, "work/step-0/done.txt")
    assert has_checkpoints(other.run)
    if by_hand:
        monkeypatch.setattr(writing, "interrupt_live_runs", lambda _: [last.run, other.run])
    write_backup(tmp_path / "it.tar")
    assert queries.job(last.id).state == State.RUNNING
    move_to(tmp_path / "other")
    manifest = restore_backup(tmp_path / "it.tar")
    assert json.loads(manifest.model_dump_json())["schema_revision"] == newest_revision()
    # As after a power failure; and where checkpoints are left out, a run begins anew.
    assert [queries.job(job.id).state for job in (last, other)] == [State.LOST, State.QUEUED]
    assert all(attempt.ended_at for attempt in queries.attempts(last.id))
    assert not manifest.checkpoints and not has_checkpoints(other.run)


def live_job(**values: int) -> Job:
    job = enqueue("count", {"steps": 1}, HOST)
    with transaction() as session:
        row = session.get_one(Job, job.id)
        row.state = State.RUNNING
        for name, value in values.items():
            setattr(row, name, value)
        session.add(
            Attempt(job_id=job.id, n=1, token="t", engine="local", launched_at=1, started_at=2)
        )
    return job


def names(file: Path) -> set[str]:
    with tarfile.open(file) as archive:
        return set(archive.getnames())


def test_what_is_in_it(queue: Path, tmp_path: Path) -> None:
    run = enqueue("count", {"steps": 1}, HOST).run
    put(run, "model/model.safetensors"), put(run, "model/config.json"), put(run, "a1/log.txt")
    put(run, "work/step-0/done.txt"), put(run, "model/.tmp-7-part/half.bin")
    (run_folder(run) / "secret").symlink_to("/etc/passwd")
    (queue / "models" / "mine").mkdir(parents=True)
    (queue / "models" / "mine" / "model.safetensors").write_text("x")
    (queue / "unrelated.txt").write_text("x")
    base = {"results.db", "manifest.json", f"artifacts/{run}/model/config.json"}
    base.add(f"artifacts/{run}/a1/log.txt")
    weights = {f"artifacts/{run}/model/model.safetensors", "models/mine/model.safetensors"}
    work = {f"artifacts/{run}/work/step-0/done.txt"}
    for options, expected in (
        ({}, base | weights),
        ({"checkpoints": True}, base | weights | work),
        ({"weights": False}, base),
    ):
        write_backup(file := tmp_path / f"{len(options)}{options}.tar", **options)
        assert names(file) == expected
        assert file.stat().st_mode & 0o777 == 0o600
    assert not [*tmp_path.glob(".*")]


def test_a_backup_that_cannot_be_written_says_why(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.tar").touch()
    with pytest.raises(BackupError, match="exists already"):
        write_backup(tmp_path / "there.tar")
    with pytest.raises(BackupError, match="no folder"):
        write_backup(tmp_path / "none" / "it.tar")
    with pytest.raises(BackupError, match="one of the two"):
        write_backup(tmp_path / "it.tar", weights=False, checkpoints=True)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(BackupError, match="are free"):
        write_backup(tmp_path / "it.tar")
    assert [path.name for path in tmp_path.glob("*.tar")] == ["there.tar"]


def test_files_that_vanish_or_grow_meanwhile(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, move_to: Move
) -> None:
    run = enqueue("count", {"steps": 1}, HOST).run
    gone, log = put(run, "gone.txt"), put(run, "a1/log.txt", "one")
    monkeypatch.setattr(
        writing, "check_disk_space", lambda *_: (gone.unlink(missing_ok=True), more())
    )

    def more() -> None:
        with log.open("a") as file:
            file.write(" more")

    manifest = write_backup(tmp_path / "it.tar")
    assert f"artifacts/{run}/gone.txt" not in manifest.files
    move_to(tmp_path / "other")
    restore_backup(tmp_path / "it.tar")
    assert log_file(run, 1).read_text().startswith("one more")


# refusals -----------------------------------------------------------------------------------------


@pytest.fixture
def backup(queue: Path, tmp_path: Path, move_to: Move) -> Path:
    """A backup of one run, with the data folder switched to one that does not exist."""
    run = enqueue("count", {"steps": 1}, HOST).run
    put(run, "model/config.json", "0123456789")
    write_backup(tmp_path / "it.tar")
    move_to(tmp_path / "other")
    return tmp_path / "it.tar"


@contextmanager
def rewritten(file: Path) -> Iterator[tuple[tarfile.TarFile, Manifest, dict[str, bytes]]]:
    """Replace an archive by a new one. The body can change its files and its manifest, which is
    written last."""
    with tarfile.open(file) as old:
        held = {name: old.extractfile(name).read() for name in old.getnames()}
    manifest = Manifest.model_validate_json(held["manifest.json"])
    with tarfile.open(file, "w") as new:
        yield new, manifest, held
        if "manifest.json" in held:
            held["manifest.json"] = manifest.model_dump_json().encode()
        for name, content in held.items():
            add(new, name, content)


def add(archive: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd" if kind != tarfile.REGTYPE else ""
    entry.size = len(content) if kind == tarfile.REGTYPE else 0
    archive.addfile(entry, BytesIO(content))


def change_byte(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(b"0123456789", b"0123456780"))


def newer(file: Path) -> None:
    with rewritten(file) as (_, manifest, _):
        manifest.schema_revision = "9999"


def without(name: str) -> Callable[[Path], None]:
    """Return a function that leaves a file out of the archive."""

    def change(file: Path) -> None:
        with rewritten(file) as (_, _, held):
            del held[name]

    return change


def smuggle(name: str, kind: bytes = tarfile.REGTYPE, declared: bool = True) -> Callable[..., None]:
    """Return a function that adds an entry to the archive and to its manifest."""

    def change(file: Path) -> None:
        with rewritten(file) as (archive, manifest, _):
            add(archive, name, b"x", kind)
            if declared:
                manifest.files[name] = manifest.files["results.db"]

    return change


def with_statement(statement: str) -> Callable[[Path], None]:
    """Return a function that runs a statement in the database of the archive, with a valid
    checksum."""

    def change(file: Path) -> None:
        database = file.with_name("changed.db")
        with rewritten(file) as (_, manifest, held):
            database.write_bytes(held["results.db"])
            with closing(sqlite3.connect(database)) as opened:
                opened.execute(statement)
                opened.commit()
            held["results.db"] = content = database.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest.files["results.db"] = ArchivedFile(bytes=len(content), sha256=digest)

    return change


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT x FROM n"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (with_statement(f"CREATE VIEW more AS {ENDLESS}"), "more than tables"),
        (
            with_statement("CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN SELECT 1; END"),
            "more than tables",
        ),
        (with_statement("CREATE VIRTUAL TABLE v USING fts5(x)"), "more than tables"),
        (with_statement("CREATE UNIQUE INDEX u ON jobs (state)"), "more than tables"),
        (with_statement("DROP TABLE api_keys"), "has no table api_keys"),
        (with_statement("DROP TABLE alembic_version"), "cannot be read"),
        (with_statement("UPDATE alembic_version SET version_num = 'x'"), "another version"),
        (change_byte, "config.json differs from its checksum"),
        (lambda file: file.write_text("no archive" * 99), "damaged or not a backup"),
        (lambda file: file.unlink(), "There is no file"),
        (newer, "which has a newer database"),
        (without("artifacts/count-0001/model/config.json"), "config.json is missing"),
        (without("manifest.json"), "no manifest"),
        (smuggle("artifacts/../../x"), "is not a file of a backup"),
        (smuggle("/tmp/x"), "is not a file of a backup"),
        (smuggle("artifacts/link", tarfile.SYMTYPE), "is not a file of a backup"),
        (smuggle("artifacts/hard", tarfile.LNKTYPE), "is not a file of a backup"),
        (smuggle("artifacts/pipe", tarfile.FIFOTYPE), "is not a file of a backup"),
        (smuggle(".slimscope/supervisor.lock"), "is not a file of a backup"),
        (smuggle("results.db"), "twice"),
        (smuggle("artifacts/more", declared=False), "not in its manifest"),
    ],
)
def test_a_bad_file_is_refused_and_leaves_nothing(
    backup: Path, damage: Callable[[Path], None], why: str
) -> None:
    damage(backup)
    with pytest.raises((BackupError, ConflictError), match=why):
        restore_backup(backup)
    assert [*settings().root.iterdir()] == []


def test_a_restored_run_gets_the_environment_of_this_machine_and_keys_are_revoked(
    backup: Path,
) -> None:
    hostile = '{"settings": {"SLIMSCOPE_CACHE_DIR": "/evil"}, "variables": {"HF_HOME": "/evil"}}'
    with_statement(f"UPDATE jobs SET environment = '{hostile}'")(backup)
    digest = hashlib.sha256(f"{PREFIX}evil".encode()).hexdigest()
    values = f"('evil', '{digest}', 1)"
    with_statement(f"INSERT INTO api_keys (name, sha256, created_at) VALUES {values}")(backup)
    restore_backup(backup)
    assert [job.environment for job in queries.jobs()] == [{}]
    assert [key.revoked_at is not None for key in all_keys()] == [True]
    assert not key_name(f"{PREFIX}evil")


def test_a_folder_with_anything_in_it_is_refused(
    backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = settings().root
    (root / ".restoring" / "artifacts").mkdir(parents=True)  # of a restore that was killed
    with monkeypatch.context() as patch:
        patch.setattr(reading.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(BackupError, match="are free"):
            restore_backup(backup)
    restore_backup(backup)
    assert not (root / ".restoring").exists() and len(queries.jobs()) == 1
    with pytest.raises(BackupError, match="is not empty"):
        restore_backup(backup)
    shutil.rmtree(root)
    with monkeypatch.context() as patch:
        patch.setenv("SLIMSCOPE_DATABASE_URL", "sqlite:////tmp/another.db")
        settings.cache_clear()
        with pytest.raises(BackupError, match="Unset it"):
            restore_backup(backup)
