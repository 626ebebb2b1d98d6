"""SQLite: a database in one file, for one machine."""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.dialects import sqlite

from backend.store.dialects.base import BUSY_MS, Dialect, NamedLock, driver_connection

POLL_S = 0.002


class SQLite(Dialect):
    """An SQLite file in WAL mode."""

    title = "SQLite"
    one_machine = True
    reuses_largest_id = True

    def options(self) -> dict[str, Any]:
        return {"connect_args": {"timeout": BUSY_MS / 1000}}

    def prepare(self, engine: sa.Engine) -> None:
        sa.event.listen(engine, "connect", _configure_connection)
        sa.event.listen(engine, "begin", _begin_transaction)

    @contextmanager
    def write_turn(self, engine: sa.Engine) -> Iterator[None]:
        """Context in which this process may write; all processes write one after the other.

        SQLite alone lets waiting processes try again at growing intervals, so that one can wait for
        seconds while another writes batch after batch. A process that freezes during its turn
        blocks the others no longer than with SQLite alone."""
        if not engine.url.database:
            yield
            return
        lock = FileLock(f"{engine.url.database}-turn")
        with suppress(Timeout):
            lock.acquire(BUSY_MS / 1000, POLL_S)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def durable_commits(self, connection: sa.Connection) -> Iterator[None]:
        self._synchronous(connection, "FULL")
        try:
            yield
        finally:
            self._synchronous(connection, "NORMAL")

    def _synchronous(self, connection: sa.Connection, level: str) -> None:
        """Set the durability of commits, outside a transaction: SQLite ignores it inside one."""
        driver_connection(connection).execute(f"PRAGMA synchronous={level}")

    def file(self, url: sa.URL) -> Path | None:
        return Path(url.database) if url.database else None

    def files(self, url: sa.URL) -> list[Path]:
        paths = (Path(f"{url.database}{suffix}") for suffix in ("", "-wal", "-shm"))
        return [path for path in paths if url.database and path.is_file()]

    def other_users(self, engine: sa.Engine) -> list[str]:
        database, pids = str(self.file(engine.url)), []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and any(
                    file.path == database for file in process.open_files()
                ):
                    pids.append(str(process.pid))
        return pids

    def insert_all(
        self, connection: sa.Connection, table: sa.TableClause, rows: Sequence[Sequence[Any]]
    ) -> None:
        names = [column.name for column in table.columns]
        if rows:
            values = [dict(zip(names, row, strict=True)) for row in rows]
            connection.execute(sqlite.insert(table), values)

    def upsert(
        self, connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        if rows:
            connection.execute(_upsert_statement(table), rows)

    def try_lock(self, connection: sa.Connection, lock: NamedLock) -> bool:
        """Return True: a lock in the data folder already excludes other processes."""
        return True

    def version(self, engine: sa.Engine) -> str:
        return sqlite3.sqlite_version

    def bytes(self, engine: sa.Engine) -> int:
        return sum(file.stat().st_size for file in self.files(engine.url))

    def shrink_log(self, engine: sa.Engine) -> None:
        """Checkpoint the write-ahead log without waiting for active readers.

        Only the supervisor may call it: SQLite before 3.51.3 may corrupt a database when two
        connections checkpoint concurrently (sqlite.org, WAL-reset bug)."""
        with suppress(sqlite3.Error), engine.connect() as connection:
            raw = driver_connection(connection)
            raw.execute("PRAGMA busy_timeout=0")
            try:
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                raw.execute(f"PRAGMA busy_timeout={BUSY_MS}")


@cache
def _upsert_statement(table: sa.Table) -> sqlite.Insert:
    insert = sqlite.insert(table)
    values = {c.name: insert.excluded[c.name] for c in table.columns if not c.primary_key}
    return insert.on_conflict_do_update(index_elements=table.primary_key, set_=values)


def _configure_connection(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are started explicitly
    # a damaged value with invalid UTF-8 must not make other rows unreadable
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        f"busy_timeout={BUSY_MS}",
        "foreign_keys=ON",
        "journal_size_limit=67108864",
        "wal_autocheckpoint=0",  # only the supervisor checkpoints; see `shrink_log`
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_transaction(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
