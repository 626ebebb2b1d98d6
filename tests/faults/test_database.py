"""The database: cut off in the middle of writing, locked, migrated under a job."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from backend.queue import service, supervisor
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import frames, queries
from backend.store.dialects import sqlite
from backend.store.dialects.base import NamedLock
from backend.store.held_lock import HeldLock
from backend.store.session import engine_for, reading, writing
from backend.store.states import State
from backend.store.tables import MetricPoint
from jobs.runtime import context as contexts
from jobs.submit import submit
from tests.faults.conftest import ClaimHere
from tests.queue.conftest import HOST, Wait, running

ROWS = 200  # in one transaction
WRITER = f"""
import sys
from backend.store.session import writing, now_ms
from backend.store.tables import MetricPoint
for batch in range(10**6):
    with writing() as session:
        for i in range({ROWS}):
            session.add(MetricPoint(job_id=int(sys.argv[1]), name="x", step=batch * {ROWS} + i,
                                    at=now_ms(), value=0.0))
        session.flush()
        print(batch, flush=True)
"""


def test_kill_9_leaves_whole_batches_only(queue: Path) -> None:
    job = service.enqueue("count", {}, HOST)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(job.id)], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
        copied = whole_rows(copy_of(queue))  # as a power cut would leave it at this moment
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        with reading() as opened:
            assert copied <= opened.query(MetricPoint).count()
            assert opened.query(MetricPoint).count() % ROWS == 0
        with writing() as opened:
            assert opened.query(MetricPoint).delete() >= 2 * ROWS
    assert whole_rows(queue / "results.db") == 0


def copy_of(data: Path) -> Path:
    """The database and its write-ahead log as they are, without asking SQLite."""
    folder = data / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("results.db", "results.db-wal"):
        shutil.copyfile(data / name, folder / name)
    return folder / "results.db"


def whole_rows(path: Path) -> int:
    """How many points there are in a database that is sound and holds whole transactions only."""
    database = sqlite3.connect(path)
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count = int(database.execute("SELECT count(*) FROM metric_points").fetchone()[0])
    finally:
        database.close()
    assert count % ROWS == 0
    return count


def test_a_log_that_is_cut_anywhere_holds_whole_transactions(queue: Path) -> None:
    job = service.enqueue("count", {}, HOST)
    for batch in range(3):
        with writing() as opened:
            opened.add_all(
                MetricPoint(job_id=job.id, name="x", step=batch * ROWS + i, at=0, value=0.0)
                for i in range(ROWS)
            )
    size = (queue / "results.db-wal").stat().st_size
    found = []
    for cut in range(0, size + 1, size // 40):
        path = copy_of(queue)
        os.truncate(f"{path}-wal", size - cut)
        found.append(whole_rows(path) if revision_of(path) else 0)
    assert found == sorted(found, reverse=True) and {*found} >= {0, ROWS, 2 * ROWS, 3 * ROWS}


def revision_of(path: Path) -> bool:
    """Whether the tables had been made before the cut."""
    database = sqlite3.connect(path)
    tables = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'metric_points'").fetchall()
    database.close()
    return bool(tables)


def lead() -> HeldLock:
    """The right of this process to supervise."""
    return HeldLock(engine_for(settings().url), NamedLock.SUPERVISOR)


@pytest.fixture
def other(queue: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """Another process, to lock the database; nobody waits for it inside of SQLite."""
    monkeypatch.setattr(sqlite, "BUSY_MS", 1)
    engine_for.cache_clear()
    connection = sqlite3.connect(
        queue / "results.db", isolation_level=None, check_same_thread=False
    )
    yield connection
    connection.close()


def test_a_run_goes_on_while_the_database_is_locked_and_its_figures_arrive(
    claim_here: ClaimHere, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    context = claim_here()
    monkeypatch.setattr(contexts, "BEAT_S", 0.01)
    other.execute("BEGIN IMMEDIATE")
    context.start()
    said = ""
    for step in range(10_000):  # until a beat has failed
        context.metric("loss", step, step)
        context.progress(step, 10_000, "training")
        said += capsys.readouterr().out
        if "database is locked" in said:
            break
        time.sleep(0.001)
    assert "kept for later" in said and not context.should_stop()
    assert frames.curves(context.job_id).empty  # readers do not wait
    other.rollback()
    context.settle()
    assert frames.curves(context.job_id)["value"].tolist() == [*range(step + 1)]


def test_a_checkpoint_waits_for_the_figures_that_belong_to_it(
    claim_here: ClaimHere, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, waited = claim_here(), list[bool]()
    context.metric("loss", 2.0, 1)
    other.execute("BEGIN IMMEDIATE")

    def sleep(_: float) -> None:
        waited.append((context.work / "one").exists())
        other.rollback()

    monkeypatch.setattr(contexts.time, "sleep", sleep)
    with context.checkpoints.write("one") as folder:
        (folder / "a.txt").write_text("text")
    assert waited == [False] and context.checkpoints.find("one")
    assert frames.curves(context.job_id)["value"].tolist() == [2.0]


def test_a_locked_database_does_not_end_the_supervisor(
    loop: SupervisorLoop, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_IDLE_EXIT", "0.1")
    settings.cache_clear()
    other.execute("BEGIN IMMEDIATE")
    turn, refused = loop.turn, list[OperationalError]()

    def turned() -> bool:
        try:
            return turn()
        except OperationalError as error:
            refused.append(error)
            other.rollback()
            raise

    monkeypatch.setattr(loop, "turn", turned)
    supervisor.run_until_idle(loop, lead())
    assert len(refused) == 1 and "locked" in str(refused[0])


def test_a_run_outlives_a_migration(wait: Wait) -> None:
    """Of a version to come, which adds what the process of the run does not know."""
    job = submit("count", {"steps": 8, "pause": 0.2}, HOST)
    wait(job.id, when=running(job.id, 1))
    with engine_for(settings().url).begin() as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN later INTEGER"))
        connection.execute(text("CREATE INDEX ix_jobs_later ON jobs (later)"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    assert queries.job(job.id).attempts_made == 1
    counted = frames.curves(job.id)
    assert counted[counted["name"] == "count"]["value"].tolist() == [*range(8)]
