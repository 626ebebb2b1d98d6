"""The database: cut off in the middle of writing, locked, migrated under a job."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError

from backend.metric_key import MetricKey
from backend.queue import service, supervisor
from backend.queue.lifecycle import end_attempt, verdict
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.statistics.tensors import BASE_STATISTICS, QUANTILES, TensorSnapshot
from backend.store import frames, queries, tensors
from backend.store.dialects import sqlite
from backend.store.dialects.base import NamedLock
from backend.store.dialects.postgresql import CONNECT_S, PEER_TIMEOUT_S
from backend.store.session import DatabaseLock, engine_for, reading, writing
from backend.store.states import Exit, State
from backend.store.tables import Attempt, Job, MetricPoint
from jobs.metrics import PERPLEXITY
from jobs.runtime import context as contexts
from jobs.runtime import row_buffer
from jobs.runtime.context import SPOOL, JobContext
from jobs.runtime.main import database_exit_code, execute
from jobs.runtime.row_buffer import LeaseLostError, RowSpool
from tests.conftest import ALL, Given
from tests.faults.conftest import ClaimHere
from tests.queue.conftest import HOST

ROWS = 200  # in one transaction
WRITER = f"""
import sys
from backend.store.session import writing, now_ms
from backend.store.tables import MetricPoint
for batch in range(10**6):
    with writing() as session:
        for i in range({ROWS}):
            session.add(MetricPoint(job_id=int(sys.argv[1]), family="x", stage="", series="",
                                    axis="step", step=batch * {ROWS} + i, at=now_ms(), value=0.0))
        session.flush()
        print(batch, flush=True)
"""


@pytest.mark.sqlite("its file")
def test_kill_9_leaves_whole_batches_only(queue: Path) -> None:
    job = service.enqueue("count", {}, HOST)
    for _ in range(3 if ALL else 1):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(job.id)], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
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


@pytest.mark.sqlite("its log")
def test_a_log_that_is_cut_anywhere_holds_whole_transactions(queue: Path) -> None:
    job = service.enqueue("count", {}, HOST)
    for batch in range(3):
        with writing() as opened:
            opened.add_all(
                MetricPoint(
                    job_id=job.id, **asdict(MetricKey("x")), step=batch * ROWS + i, at=0, value=0.0
                )
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


LOCKED = pytest.mark.sqlite("another program locks it")
SNAPSHOT = TensorSnapshot(
    "a",
    0,
    "a",
    "dense",
    4,
    1,
    0,
    0,
    -1.0,
    1.0,
    np.array([1, 2, 3]),
    dict.fromkeys(BASE_STATISTICS, 1.0),
    (0.5,) * len(QUANTILES),
)


def lead() -> DatabaseLock:
    """The right of this process to supervise."""
    return DatabaseLock(engine_for(settings().url), NamedLock.SUPERVISOR)


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


@LOCKED
def test_a_run_goes_on_while_the_database_is_locked_and_its_figures_arrive(
    claim_here: ClaimHere,
    other: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    context = claim_here()
    monkeypatch.setattr(row_buffer, "WRITE_INTERVAL_S", 0.01)
    other.execute("BEGIN IMMEDIATE")
    context.start()
    said = ""
    for step in range(10_000):  # until a beat has failed
        context.metric(MetricKey("loss"), step, step)
        context.progress(step, 10_000, "training")
        said += capsys.readouterr().out
        if "database is locked" in said:
            break
        time.sleep(0.001)
    assert "kept and written later" in said and not context.should_stop()
    assert frames.curves(context.job_id).empty  # readers do not wait
    other.rollback()
    context._rows.flush()
    assert frames.curves(context.job_id)["value"].tolist() == [*range(step + 1)]


def spooled(context: JobContext) -> list[float]:
    """The figures that are kept beside the checkpoints."""
    return [values["value"] for _, values in RowSpool(context.work / SPOOL).read()]


@LOCKED
def test_a_checkpoint_has_its_figures_beside_it_while_the_database_is_locked(
    claim_here: ClaimHere, other: sqlite3.Connection
) -> None:
    context = claim_here()
    other.execute("BEGIN IMMEDIATE")
    for step, name in enumerate(("one", "two")):
        context.metric(MetricKey("loss"), 2.0 - step, step)
        with context.checkpoints.write(name) as folder:
            (folder / "a.txt").write_text("text")
        assert context.checkpoints.find(name) and len(spooled(context)) == step + 1
    context.result("dense", PERPLEXITY, 21.0)  # waits for nothing, either
    assert context.has_result("dense", PERPLEXITY) and spooled(context) == [2.0, 1.0, 21.0]
    other.rollback()
    context._rows.flush()
    assert frames.curves(context.job_id)["value"].tolist() == [2.0, 1.0]
    assert spooled(context) == [] and context.has_result("dense", PERPLEXITY)


@LOCKED
def test_the_next_attempt_writes_what_the_last_one_has_left(
    claim_here: ClaimHere,
    loop: SupervisorLoop,
    other: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = claim_here()
    other.execute("BEGIN IMMEDIATE")
    context.metric(MetricKey("loss"), 2.0, 1)
    context.snapshot(SNAPSHOT)
    context.settle()
    context.metric(MetricKey("loss"), 1.0, 2)  # of a part that is not finished
    with (context.work / SPOOL).open("a") as file:
        file.write('["metric_points", {"job_id": 1, "fa')  # killed as it wrote this
    other.rollback()
    with writing() as opened:
        (attempt,) = opened.query(Attempt)
        end_attempt(opened, attempt, -9)
        opened.query(Job).update({Job.not_before: 0})
    monkeypatch.setattr(loop.engine, "launch", lambda _: {"pid": os.getpid(), "identity": ""})
    loop.turn()
    again = contexts.claim(queries.attempts(context.job_id)[-1].id)
    again.metric(MetricKey("loss"), 0.5, 2)
    again.finish("succeeded")
    assert frames.curves(context.job_id)["value"].tolist() == [2.0, 0.5]
    (stored,) = tensors.tensor_snapshots(context.job_id, "a")
    assert stored.counts.tolist() == SNAPSHOT.counts.tolist()
    assert not (context.work / SPOOL).exists()
    with pytest.raises(LeaseLostError):  # who is late writes nothing
        context._rows.flush()


@LOCKED
def test_a_run_stops_when_the_database_is_away_for_too_long(
    claim_here: ClaimHere, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    context = claim_here("count", steps=1000, pause=0.01)
    given(OFFLINE_S="0.2")
    monkeypatch.setattr(row_buffer, "WRITE_INTERVAL_S", 0.01)
    other.execute("BEGIN IMMEDIATE")
    context.start()
    with pytest.raises(OperationalError) as away:
        execute(context)
    assert database_exit_code(away.value) == Exit.AWAY
    assert len(spooled(context)) >= 2  # what it had finished by then
    other.rollback()
    judged = verdict(None, Exit.AWAY, "run", 0)
    assert judged.state == State.QUEUED and not judged.spend_retry and judged.delay_ms


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_that_is_cut_off_ends_before_another_machine_takes_it_over(
    claim_here: ClaimHere, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Where other machines use the database, too."""
    context, left = claim_here("count"), list[int]()
    limit = settings().offline_s + contexts.STOP_TIMEOUT_S
    least_s = contexts.STOP_TIMEOUT_S + PEER_TIMEOUT_S + 3 * CONNECT_S
    assert least_s < supervisor.SHUTDOWN_GRACE_MS / 1000
    monkeypatch.setattr(context, "_is_shared", shared)
    monkeypatch.setattr(contexts.os, "_exit", left.append)
    for seconds in (limit - 1, limit + 1):
        monkeypatch.setattr(context._rows, "_answered_at", time.monotonic() - seconds)
        context._after_write()
    assert left == [Exit.AWAY] * shared


@LOCKED
def test_a_locked_database_does_not_end_the_supervisor(
    loop: SupervisorLoop, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    given(IDLE_EXIT="0.1")
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


def test_a_supervisor_whose_data_folder_is_gone_has_nothing_left_to_do(
    loop: SupervisorLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0

    def away() -> bool:
        nonlocal turns
        turns += 1
        raise OperationalError("no server", None, Exception())

    monkeypatch.setattr(loop, "turn", away)
    gone = settings().model_copy(update={"data_dir": tmp_path / "gone"})
    held = lead()
    monkeypatch.setattr(supervisor, "settings", lambda: gone)
    supervisor.run_until_idle(loop, held)  # and does not try for ever
    assert turns == 1
