"""One connection pool per process, with read and write transactions.

SQLite runs in WAL mode. A write transaction acquires the write lock at its start (BEGIN IMMEDIATE):
one that reads first and writes later could fail immediately, regardless of the timeout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, cast

from filelock import FileLock, Timeout
from sqlalchemy import Connection, CursorResult, Engine, Update, create_engine, event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session

from backend.errors import ConfigError
from backend.settings import settings
from backend.store.tables import read_json

BUSY_MS = 30_000
POLL_S = 0.002


def now_ms() -> int:
    """UTC milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _tune_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are started explicitly
    connection.text_factory = _text_of
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        f"busy_timeout={BUSY_MS}",
        "foreign_keys=ON",
        "journal_size_limit=67108864",
        "wal_autocheckpoint=0",  # only the supervisor checkpoints: bug before 3.51.3
    ):
        connection.execute(f"PRAGMA {pragma}")


def _text_of(stored: bytes) -> str:
    """Stored text; bytes that are no UTF-8 are replaced: one damaged value must not hide others."""
    return stored.decode("utf-8", "replace")


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@lru_cache
def engine_for(url: str) -> Engine:
    """The engine of this database, created once per process.

    Raises:
        ConfigError: the URL is none, or of a database for which no driver is installed.
    """
    options: dict[str, Any] = {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {}
    try:
        engine = create_engine(url, json_deserializer=read_json, **options)
    except (ArgumentError, ImportError, ValueError) as error:
        do = "Write SLIMSCOPE_DATABASE_URL as in sqlite:////data/results.db, or leave it unset."
        raise ConfigError("The database URL was not accepted.", _reason(error), do) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", _begin)
    return engine


def _reason(error: Exception) -> str:
    """Why a URL is none. SQLAlchemy repeats the URL, which may hold a password."""
    if isinstance(error, NoSuchModuleError):
        return "There is no such kind of database."
    if isinstance(error, ImportError):
        return f"The Python package {error.name} is not installed."
    return "It is not the URL of a database."


@contextmanager
def reading() -> Iterator[Session]:
    """A read-only transaction. Keep it short: readers block truncation of the write-ahead log."""
    with Session(engine_for(settings().url)) as session:
        yield session


@contextmanager
def writing(*, durable: bool = False) -> Iterator[Session]:
    """A write transaction, committed on exit, rolled back on an error.

    Args:
        durable: also survive a power failure (state changes), not only a crash (metrics).
    """
    engine = engine_for(settings().url)
    with _turn(engine), engine.connect().execution_options(immediate=True) as connection:
        if durable and engine.dialect.name == "sqlite":
            _set_synchronous(connection, "FULL")
        try:
            with Session(connection, expire_on_commit=False) as session, session.begin():
                yield session
        finally:
            if durable and engine.dialect.name == "sqlite":
                _set_synchronous(connection, "NORMAL")


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    """One writer after the other, of all processes. SQLite itself lets those that wait ask again
    ever more rarely, so that one can wait for seconds while another writes batch after batch. A
    process that is frozen in its turn holds nobody up for longer than SQLite would."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name:
        yield
        return
    lock = FileLock(f"{name}-turn")
    with suppress(Timeout):
        lock.acquire(BUSY_MS / 1000, POLL_S)
    try:
        yield
    finally:
        lock.release()


def change(session: Session, statement: Update) -> int:
    """Execute an UPDATE and return the number of changed rows, for compare-and-set."""
    return cast(CursorResult[Any], session.execute(statement)).rowcount


def _set_synchronous(connection: Connection, level: str) -> None:
    """Set the pragma outside transactions: SQLite ignores it inside one."""
    raw = connection.connection.driver_connection
    assert raw is not None
    raw.execute(f"PRAGMA synchronous={level}")
