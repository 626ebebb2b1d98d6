"""Tests of the thread that writes figures; finished work waits until they are on disk."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from backend.metric_key import MetricKey
from backend.store.tables import MetricPoint, TensorRow
from jobs.runtime import row_buffer
from jobs.runtime.row_buffer import LeaseLostError, Row, RowBuffer, RowSpool
from tests.waiting import until

AWAY = OperationalError("", {}, Exception("away"))


def point(step: int) -> Row:
    key = asdict(MetricKey("loss"))
    return MetricPoint, {"job_id": 1, **key, "step": step, "at": 0, "value": 0.5}


class Database:
    """Receives the figures of a buffer."""

    def __init__(self, folder: Path) -> None:
        self.rows: list[Row] = []
        self.messages: list[str] = []
        self.error: Exception | None = None
        self.answers, self.called = threading.Event(), 0
        self.answers.set()
        self.spool = RowSpool(folder)
        self.buffer = RowBuffer(self.write, self.spool, self.messages.append)

    def write(self, rows: list[Row], durable: bool) -> None:
        self.called += 1
        self.answers.wait(20)
        if self.error:
            raise self.error
        self.rows += rows


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setattr(row_buffer, "RESPONSE_TIMEOUT_S", 60.0)
    return Database(tmp_path / "work" / "figures")


@contextmanager
def served(buffer: RowBuffer) -> Iterator[threading.Thread]:
    """A thread that writes what is there."""
    closed = threading.Event()

    def life() -> None:
        with suppress(LeaseLostError):
            buffer.serve(closed.is_set, lambda: None)

    thread = threading.Thread(target=life)
    thread.start()
    until(lambda: buffer._has_writer)
    yield thread
    closed.set()
    buffer.wake()
    thread.join(60)
    assert not thread.is_alive()


def test_who_waits_goes_on_when_all_is_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_buffer, "MAX_ROWS", 3)
    with served(database.buffer):
        for turn in range(3):
            for step in range(7):
                database.buffer.add(point(7 * turn + step))
            database.buffer.settle()
            assert [values["step"] for _, values in database.rows] == [*range(7 * turn + 7)]
    assert database.spool.read() == []


def test_a_database_that_stands_still_is_waited_for_once(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_buffer, "RESPONSE_TIMEOUT_S", 0.05)
    database.answers.clear()
    with served(database.buffer):
        for step in range(3):
            database.buffer.add(point(step))
            database.buffer.settle()
            assert database.spool.read() == [point(each) for each in range(step + 1)]
        assert (
            database.called == 1
            and len(database.messages) == 1
            and "no answer" in database.messages[0]
        )
        database.answers.set()
        until(lambda: len(database.rows) == 3)
        until(lambda: len(database.messages) == 2)
        assert "is available again" in database.messages[1] and database.spool.read() == []
        monkeypatch.setattr(row_buffer, "RESPONSE_TIMEOUT_S", 60.0)
        database.buffer.add(point(3))
        database.buffer.settle()
    assert database.rows == [point(step) for step in range(4)]


def test_while_it_is_away_figures_are_kept_in_order_and_written_once(database: Database) -> None:
    database.error = AWAY
    for step in range(3):
        database.buffer.add(point(step))
        database.buffer.settle()
    assert database.called == 1 and len(database.spool.read()) == 3 and len(database.messages) == 1
    with pytest.raises(OperationalError):
        database.buffer.flush()
    database.error = None
    database.buffer.flush()
    assert database.rows == [point(step) for step in range(3)] and database.spool.read() == []


def test_the_next_attempt_takes_over_what_the_last_one_left(
    database: Database, tmp_path: Path
) -> None:
    tensor = TensorRow, {"job_id": 7, "counts": b"\x00\xff", "stats": {"x": None}}
    database.spool.append([point(1), tensor])
    with (tmp_path / "work" / "figures").open("ab") as file:
        file.write(b'["metric_po')  # killed as it wrote this
    database.buffer.take_over(1)
    database.buffer.add(point(2))
    database.error = AWAY
    database.buffer.settle()
    ours = TensorRow, tensor[1] | {"job_id": 1}
    assert RowSpool(tmp_path / "work" / "figures").read() == [point(1), tensor, point(2)]
    database.error = None
    database.buffer.flush()
    assert database.rows == [point(1), ours, point(2)]


def test_another_error_is_that_of_who_waits(database: Database) -> None:
    database.error = ValueError("no number")
    with served(database.buffer):
        database.buffer.add(point(1))
        with pytest.raises(ValueError, match="no number"):
            database.buffer.settle()
        database.error = None
        database.buffer.settle()
    assert database.rows == [point(1)]


def test_who_has_lost_the_job_leaves_nothing(database: Database) -> None:
    database.error = LeaseLostError()
    with served(database.buffer) as thread:
        database.buffer.add(point(1))
        for _ in range(2):
            with pytest.raises(LeaseLostError):
                database.buffer.settle()
        thread.join(60)
    assert database.spool.read() == []
