"""Checks of the database, its daily copies, and how a copy takes the place of a damaged one."""

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.backup.databases import is_database, replace_database
from backend.errors import BackupError
from backend.queue import upkeep
from backend.queue.launcher import SUPERVISOR
from backend.queue.service import enqueue
from backend.settings import settings
from backend.store import copies, queries
from backend.store.copies import (
    check_integrity,
    copy_daily,
    copy_database,
    daily_copies,
    last_check,
    repair_advice,
)
from backend.store.dialects.base import NamedLock
from backend.store.migrate import upgrade
from backend.store.session import DatabaseLock, engine_for, writing
from tests.conftest import Given
from tests.queue.conftest import HOST
from tests.shell import slimscope
from tests.waiting import until


@pytest.fixture
def database(queue: Path) -> Iterator[Path]:
    """A database that may be damaged: another one takes its place after the test."""
    yield queue / "results.db"
    engine_for(settings().url).dispose()
    for file in queue.glob("results.db*"):
        file.unlink()
    upgrade()


@pytest.fixture
def damaged(database: Path) -> Path:
    """A database of which a page of an index is overwritten, and an intact copy of it."""
    for steps in range(1, 60):
        enqueue("count", {"steps": steps}, HOST)
    copy_daily()
    spoil(database)
    return database


def executed(file: Path, statement: str) -> list[tuple]:
    """The rows of a statement, executed without our code."""
    with closing(sqlite3.connect(file)) as raw, raw:
        return raw.execute(statement).fetchall()


def spoil(database: Path) -> None:
    """Overwrites the first page of the index of the queue."""
    engine_for(settings().url).dispose()  # moves the write-ahead log into the database
    where = "WHERE name = 'ix_jobs_order'"
    ((page,),) = executed(database, f"SELECT rootpage FROM sqlite_master {where}")
    ((size,),) = executed(database, "PRAGMA page_size")
    with database.open("rb+") as file:
        file.seek((page - 1) * size + 100)
        file.write(b"\xff" * 800)


def test_damage_is_found_kept_and_named(damaged: Path) -> None:
    found = check_integrity()
    assert found is not None and found.problems and last_check() == found


def test_a_row_without_its_parent_is_damage(queue: Path) -> None:
    executed(queue / "results.db", "INSERT INTO step_times VALUES (77, 'prune', 1.0)")
    found = check_integrity()
    assert found is not None and "step_times" in found.problems[0]


def test_what_is_no_database_is_damage(database: Path) -> None:
    engine_for(settings().url).dispose()
    database.write_bytes(b"x" * 9000)
    told = slimscope("list")
    assert told.returncode == 2 and "slimscope restore FILE" in told.stderr


def test_a_copy_is_one_consistent_file_while_others_write(queue: Path) -> None:
    enqueue("count", {"steps": 1}, HOST)
    with writing() as session:
        session.connection().exec_driver_sql("UPDATE jobs SET name = 'open'")
        copy_database(queue / "copy.db")  # of what is committed; does not wait
    assert executed(queue / "copy.db", "SELECT name FROM jobs") == [("",)]
    assert executed(queue / "copy.db", "PRAGMA journal_mode") == [("delete",)]
    assert sorted(path.name for path in queue.glob("copy.db*")) == ["copy.db"]


def test_one_a_day_and_the_newest_are_kept(queue: Path, given: Given) -> None:
    given(BACKUPS="2")
    (queue / "backups").mkdir()
    for day in (1, 2, 3):
        (queue / "backups" / f"results-2026-01-0{day}.db").touch()
    today = copy_daily()
    assert today is not None and is_database(today) and copy_daily() is None
    assert [path.name for path in daily_copies()] == [today.name, "results-2026-01-03.db"]
    assert today.name in repair_advice()


@pytest.mark.parametrize(("keep", "free"), [("0", 10**12), ("7", 10**8)])
def test_no_copy_where_none_is_wanted_or_the_disk_is_full(
    queue: Path, monkeypatch: pytest.MonkeyPatch, given: Given, keep: str, free: int
) -> None:
    given(BACKUPS=keep)
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert copy_daily() is None and not (queue / "backups").exists()


def test_a_damaged_database_replaces_no_copy(damaged: Path) -> None:
    (before,) = daily_copies()
    before.rename(before.with_name("results-2026-01-01.db"))
    upkeep.daily()
    assert [path.name for path in daily_copies()] == ["results-2026-01-01.db"]


def test_the_check_is_made_once_a_day(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upkeep.daily()
    first = last_check()
    upkeep.daily()
    assert last_check() == first is not None and len(daily_copies()) == 1
    monkeypatch.setattr(upkeep, "now_ms", lambda: first.at + upkeep.DAY_MS)
    upkeep.daily()
    assert last_check() != first


def test_a_turn_that_fails_is_told_and_ends_nothing(
    queue: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns = iter([OSError("the disk is gone")])

    def measure() -> None:
        if error := next(turns, None):
            raise error
        done.append(True)

    done: list[bool] = []
    monkeypatch.setattr(upkeep, "measure_ended", measure)
    monkeypatch.setattr(upkeep, "PAUSE_S", 0.01)
    with upkeep.upkeep(DatabaseLock(engine_for(settings().url), NamedLock.SUPERVISOR)):
        until(lambda: done)
    assert "the disk is gone" in caplog.text


# a copy in place of the database ------------------------------------------------------------------


def test_a_copy_takes_the_place_of_a_damaged_database(damaged: Path) -> None:
    check_integrity()
    engine_for(settings().url).dispose()
    log = damaged.with_name("results.db-wal")
    log.write_bytes(b"the log of the old database")
    done = slimscope("restore", str(daily_copies()[0]))
    assert done.returncode == 0, done.stderr
    (kept,) = copies.copies_folder().glob("replaced-*.db")
    assert str(kept.name) in done.stdout.replace("\n", "")
    assert kept.with_name(kept.name + "-wal").read_bytes() == b"the log of the old database"
    assert last_check().problems == [] and len(queries.jobs()) == 59


def test_a_database_in_use_is_not_replaced(damaged: Path) -> None:
    (copy,) = daily_copies()
    lock = SUPERVISOR.try_lock()
    with pytest.raises(BackupError, match="supervisor"):
        replace_database(copy)
    lock.release()
    with subprocess.Popen(["sleep", "60"], stdin=damaged.open("rb")) as user:
        with pytest.raises(BackupError, match=str(user.pid)):
            replace_database(copy)
        user.kill()


def test_a_damaged_copy_is_refused(damaged: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.db"
    bad.write_bytes(damaged.read_bytes())
    with pytest.raises(BackupError, match="is damaged"):
        replace_database(bad)
    copy = daily_copies()[0]
    executed(copy, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BackupError, match="newer version"):
        replace_database(copy)
    assert not [*damaged.parent.rglob("*replaced*")]
