"""The interface to the differences between databases.

SQLite has one writer at a time, which holds the write lock from the beginning of its transaction. A
transaction that reads, decides and writes is therefore isolated. PostgreSQL has many writers, so a
transaction locks the rows it decides about by `SELECT … FOR UPDATE` (`session.locked`, ignored by
SQLite), and everything that has no row by a `NamedLock`."""
# ruff: noqa: B027

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ColumnElement, Connection, Engine, MetaData, Table, TableClause
from sqlalchemy.orm import Session

BUSY_MS = 30_000  # longest wait for a lock


class NamedLock(StrEnum):
    """Locks for data that has no row to lock."""

    MIGRATION = "migration"
    SUPERVISOR = "supervisor"
    GUESTS = "guests"  # number of runs of each guest
    ORDER = "order"  # order of the queue

    @property
    def number(self) -> int:
        """The id of the lock on a server, a signed 64-bit number."""
        digest = hashlib.sha256(f"slimscope {self.value}".encode()).digest()
        return int.from_bytes(digest[:8], signed=True)


def driver_connection(connection: Connection) -> Any:
    """The connection of the driver, for features that SQLAlchemy lacks."""
    raw = connection.connection.driver_connection
    assert raw is not None
    return raw


class Dialect(ABC):
    """One kind of database.

    Methods that are not abstract have nothing to do for some kind: a writer of an SQLite file is
    the only one; a server maintains itself.

    Attributes:
        title: name on the screen.
        one_machine: only processes of one machine can use the database.
        backup_advice: sentence about backups, for databases that Slimscope does not copy.
        reuses_largest_id: a new row gets the largest existing number plus 1, rather than the
            last assigned number plus 1.
    """

    title: str
    one_machine: bool
    backup_advice: str = ""
    reuses_largest_id: bool

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Arguments of `create_engine`."""

    @abstractmethod
    def prepare(self, engine: Engine) -> None:
        """Set up a new engine."""

    def for_reading(self, engine: Engine) -> Engine:
        """An engine for transactions that only read, and see one state of the database."""
        return engine

    @contextmanager
    def write_turn(self, engine: Engine) -> Iterator[None]:
        """Context in which this process may write, after waiting for its turn."""
        yield

    @contextmanager
    def durable_commits(self, connection: Connection) -> Iterator[None]:
        """Context whose commits survive a power failure, not only a crash of this process."""
        yield

    def file(self, url: URL) -> Path | None:
        """The file of the database; None for a server or a database in memory."""
        return None

    def files(self, url: URL) -> list[Path]:
        """The existing files of the database."""
        return []

    @abstractmethod
    def other_users(self, engine: Engine) -> list[str]:
        """Other processes that use the database, named so that a person can find them."""

    def freeze(self, connection: Connection, tables: MetaData) -> None:
        """Block all other writers of these tables until the end of the transaction."""

    @abstractmethod
    def insert_all(
        self, connection: Connection, table: TableClause, rows: Sequence[Sequence[Any]]
    ) -> None:
        """Insert many new rows, with values in the order of the columns and JSON as text."""

    @abstractmethod
    def upsert(
        self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Insert rows, or replace rows with the same key. Of several with one key the last counts.

        Each row has a value for every column."""

    def now_ms(self, session: Session) -> int | None:
        """Time of the database, UTC milliseconds since 1970; None if it has no clock."""
        return None

    def lock(self, connection: Connection, lock: NamedLock) -> None:
        """Wait for a lock and hold it until the end of the transaction."""

    @abstractmethod
    def try_lock(self, connection: Connection, lock: NamedLock) -> bool:
        """Try to take a lock; return True if the connection holds it, until it is closed."""

    def among(self, column: Any, numbers: Sequence[int]) -> ColumnElement[bool]:
        """Condition that a column has one of many numbers."""
        return column.in_(numbers)

    def after_migration(self, connection: Connection) -> None:
        """Correct differences between new and migrated tables."""

    @abstractmethod
    def version(self, engine: Engine) -> str:
        """Version of the database software."""

    @abstractmethod
    def bytes(self, engine: Engine) -> int:
        """Size of the database in bytes."""

    def continue_numbering(self, connection: Connection, tables: MetaData) -> None:
        """Make the next row of each table follow the largest existing number."""

    def shrink_log(self, engine: Engine) -> None:
        """Write the log into the database, if Slimscope has to do it."""
