"""All tables move into another database and back, completely or not at all: between two files or,
with `make test-postgres`, between a file and a server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from backend.backup import databases
from backend.backup.databases import move_database
from backend.errors import BackupError
from backend.metric_key import MetricKey
from backend.queue.launcher import SUPERVISOR
from backend.queue.service import enqueue
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.session import engine_for, reading, writing
from backend.store.states import State
from backend.store.tables import (
    ApiKey,
    Artifact,
    Attempt,
    Conversation,
    DecoderRow,
    Event,
    Job,
    MessageRow,
    MetricPoint,
    Need,
    ProfileRow,
    Result,
    SavedView,
    Slot,
    StepTime,
    Story,
    Supervisor,
    Table,
    TensorRow,
    example_number,
)
from tests import postgres
from tests.conftest import Given
from tests.queue.conftest import HOST, change

EVERY = Table.metadata.sorted_tables
ODD = 'Größe 😀 \\u0000 "q" \t\n\\N'  # as an escape, a tab and a NULL of COPY
KILLED = """
import os, sys
from backend.backup.databases import move_database
move_database(sys.argv[1], lambda table, rows: table == "metric_points" and os._exit(9))
"""


@pytest.fixture
def folder(data_dir: Path, given: Given) -> Iterator[Path]:
    """A data folder with a row in every table of its file."""
    given(DATABASE_URL="")
    upgrade()
    with writing() as session:
        for row in rows():
            session.add(row)
            session.flush()  # in this order
    engine_for(settings().url).dispose()  # this process does not have it open
    yield data_dir
    engine_for.cache_clear()


def rows() -> Iterator[Table]:
    """A row of every table, with unusual values."""
    made = {"owner": "mira", "config_hash": "", "created_at": 1, "queued_at": 2}
    for number in (example_number("sds", 1), 1, 2):
        yield Job(
            id=number,
            kind="sds",
            config={"model": ODD},
            state="succeeded",
            name=ODD.strip(),
            parent=None if number < 2 else 1,
            tags=["a", "Ä"],
            purged=number == 2,
            **made,
        )
    ref = {"pid": 1}
    yield Attempt(id=1, job_id=1, n=1, token="t", engine="local", launched_at=1, engine_ref=ref)
    yield Slot(host="here", number=0)
    yield Supervisor(host="here", beat_at=1)
    yield Event(id=7, job_id=1, at=1, type="queued", actor="mira", text=ODD)
    yield Conversation(id=1, owner="mira", sides=["toy", ODD], blind=True, created_at=1)
    said = {"conversation_id": 1, "author": "mira", "text": ODD, "at": 1}
    yield MessageRow(id=1, settings={"of": ODD}, votes={"mira": [1, True]}, **said)
    yield MessageRow(id=2, parent=1, side=1, transcript=[{"end": ODD}], **said)
    yield ApiKey(name="lab", sha256="a", created_at=1)
    for step, value in enumerate((0.1, 1 / 3, 1e-300, -0.0)):
        yield MetricPoint(job_id=1, **asdict(MetricKey("loss")), step=step, at=2**41, value=value)
    yield Result(job_id=1, stage="sds", family="ppl", value=0.1 + 0.2, details={"of": [ODD, None]})
    yield StepTime(job_id=1, step="prune", seconds=1.5)
    yield DecoderRow(job_id=1, decoder="vanilla", report={})
    yield TensorRow(
        job_id=1,
        tensor="a",
        stage="dense",
        step=0,
        block=0,
        module="a",
        n=4,
        zeros=0,
        below=0,
        above=0,
        lo=-1.0,
        hi=1.0,
        counts=bytes(range(256)),
        stats={"x": 1.0},
        quantiles=[0.5],
    )
    yield ProfileRow(
        job_id=1,
        tensor="a",
        stage="dense",
        step=0,
        name="scale",
        block=0,
        module="a",
        shape=[1],
        values=b"\x00\xff",
    )
    yield Artifact(id=3, job_id=1, kind="model", path="sds-0001/model", bytes=2**40, created_at=1)
    yield SavedView(name="v", query="q", owner="mira", saved_at=1)
    yield Need(job_id=2, needed_id=1)
    view = {"id": 1, "address": "weights", "chart": "", "text": ODD}
    yield Story(id=1, title=ODD, owner="mira", views=[view], created_at=1, saved_at=1)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[str]:
    """The URL of another database, which is empty."""
    if postgres.SERVER not in os.environ:
        yield f"sqlite:///{tmp_path / 'there.db'}"
        return
    with postgres.database(os.environ[postgres.SERVER]) as url:
        yield url
        engine_for(url).dispose()


def use(url: str, given: Given) -> None:
    """Use another database in the settings."""
    engine_for(settings().url).dispose()
    given(DATABASE_URL=url)


def content() -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of all tables."""
    with reading() as session:
        return {
            table.name: [
                tuple(row)
                for row in session.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in EVERY
        }


def test_all_moves_and_comes_back(folder: Path, there: str, tmp_path: Path, given: Given) -> None:
    before, told = content(), dict[str, int]()
    assert all(before.values()), "a table that the test does not know"
    assert move_database(there, told.__setitem__) == sum(map(len, before.values()))
    assert told == {name: len(found) for name, found in before.items()}
    assert content() == before  # the old one is as it was
    use(there, given)
    assert content() == before
    assert enqueue("sds", {}, HOST).id == 3 and queries.job("sds-example").name == ODD.strip()
    added = content()
    moved_back = f"sqlite:///{tmp_path / 'back.db'}"
    move_database(moved_back)
    use(moved_back, given)
    assert content() == added


def test_a_killed_move_leaves_nothing_and_can_be_repeated(folder: Path, there: str) -> None:
    engine_for(settings().url).dispose()
    before = content()
    engine_for(settings().url).dispose()
    killed = subprocess.run([sys.executable, "-c", KILLED, there], capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    assert move_database(there) and content() == before


def test_nothing_is_moved_while_a_run_or_a_supervisor_is_at_work(folder: Path, there: str) -> None:
    change(Job, 1, state=State.RUNNING)
    with pytest.raises(BackupError, match="A run is live"):
        move_database(there)
    change(Job, 1, state=State.QUEUED)
    lock = SUPERVISOR.try_lock()
    assert lock is not None
    with pytest.raises(BackupError, match="supervisor"):
        move_database(there)
    lock.release()
    assert move_database(there)


def test_nothing_is_moved_while_another_process_has_the_database_open(
    folder: Path, there: str
) -> None:
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "results.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(BackupError, match=f"use the database: {other.pid}"):
            move_database(there)
        other.kill()


def test_a_server_knows_who_uses_it(
    on_server: str, folder: Path, there: str, given: Given, tmp_path: Path
) -> None:
    move_database(there)
    use(there, given)
    script = "import psycopg, sys; c = psycopg.connect(sys.argv[1]); print(flush=True); input()"
    plain = there.replace("+psycopg", "")
    with subprocess.Popen(
        [sys.executable, "-c", script, plain], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(BackupError, match=r"use the database: .* at this machine"):
            move_database(f"sqlite:///{tmp_path / 'back.db'}")
        other.kill()


def test_a_copy_that_differs_is_not_kept(
    folder: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = count()
    with monkeypatch.context() as patch:
        patch.setattr(databases, "_digest", lambda _: next(numbers))
        with pytest.raises(BackupError, match="differs"):
            move_database(there)
    with engine_for(there).connect() as connection:
        assert not databases.inspect(connection).get_table_names()
    engine_for(there).dispose()
    assert move_database(there)


def test_what_is_no_number_in_json_becomes_none(folder: Path, there: str, given: Given) -> None:
    with writing() as session:
        session.execute(text("UPDATE results SET details = '{\"x\": [NaN, -Infinity, 1.5]}'"))
    move_database(there)
    use(there, given)
    assert queries.results([1])[0].details == {"x": [None, None, 1.5]}


def test_a_value_that_the_new_database_cannot_hold_is_named(
    on_server: str, folder: Path, there: str
) -> None:
    with writing() as session:
        session.execute(text("UPDATE jobs SET note = 'a' || char(0) WHERE id = 2"))
    with pytest.raises(BackupError, match="rejected a row of jobs"):
        move_database(there)
    with engine_for(there).connect() as connection:
        assert (
            connection.scalar(
                select(func.count())
                .select_from(text("pg_tables"))
                .where(text("schemaname = 'public'"))
            )
            == 0
        )


def test_a_dump_brings_the_tables_of_a_server_back(
    on_server: str, folder: Path, there: str, tmp_path: Path, given: Given
) -> None:
    before, programs = content(), postgres.programs()
    move_database(there)
    dump = str(tmp_path / "dump")
    with postgres.database(os.environ[postgres.SERVER]) as empty:
        for line in (
            ["pg_dump", "--format=custom", f"--file={dump}", there.replace("+psycopg", "")],
            ["pg_restore", "--no-owner", f"--dbname={empty.replace('+psycopg', '')}", dump],
        ):
            done = subprocess.run([programs / line[0], *line[1:]], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        use(empty, given)
        assert content() == before and enqueue("sds", {}, HOST).id == 3
        engine_for(empty).dispose()
