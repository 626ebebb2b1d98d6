"""Differences between databases, in one place.

SQLite: one writer at a time, who holds the write lock from the beginning of a transaction. So
whatever reads, decides and writes in one transaction is alone. PostgreSQL: many writers. A
transaction locks what it decides about: rows by `SELECT … FOR UPDATE` (`session.locked`, ignored by
SQLite), what has no row by a `NamedLock`."""
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

BUSY_MS = 30_000  # the longest wait for a lock


class NamedLock(StrEnum):
    """What is locked as a whole, where there is no row to lock."""

    MIGRATION = "migration"
    SUPERVISOR = "supervisor"
    GUESTS = "guests"  # how many runs they have
    ORDER = "order"  # of the queue

    @property
    def number(self) -> int:
        """What a server knows it by: a signed 64-bit number."""
        digest = hashlib.sha256(f"slimscope {self.value}".encode()).digest()
        return int.from_bytes(digest[:8], signed=True)


def driver_connection(connection: Connection) -> Any:
    """What the driver knows a connection by, for what it can do beyond SQL."""
    raw = connection.connection.driver_connection
    assert raw is not None
    return raw


class Dialect(ABC):
    """One kind of database. Where a method is not abstract, there is a kind that has nothing to do:
    an SQLite file is alone while it is written; a server looks after itself.

    Attributes:
        title: its name, for people.
        one_machine: only processes of one machine can use it.
        numbers_follow_largest: the next row gets the number after the largest there is, rather than
            after the last one that was given.
        backup_advice: how to back it up where we do not.
    """

    title: str
    one_machine: bool
    backup_advice: str = ""
    numbers_follow_largest: bool

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Arguments of `create_engine`."""

    @abstractmethod
    def prepare(self, engine: Engine) -> None:
        """Set up a new engine."""

    def for_reading(self, engine: Engine) -> Engine:
        """The engine of transactions that see one state of the database, and write nothing."""
        return engine

    @contextmanager
    def turn(self, engine: Engine) -> Iterator[None]:
        """A context in which it is this process's turn to write."""
        yield

    @contextmanager
    def surviving_power_cuts(self, connection: Connection) -> Iterator[None]:
        """A context whose commits survive a power cut, too, not only a crash of this process."""
        yield

    def file(self, url: URL) -> Path | None:
        """The file of the database; None if it is not one that this process can read."""
        return None

    def files(self, url: URL) -> list[Path]:
        """The files that make up the database, of those that exist."""
        return []

    @abstractmethod
    def users(self, engine: Engine) -> list[str]:
        """The other processes that use the database, as a person can find them."""

    def freeze(self, connection: Connection, tables: MetaData) -> None:
        """Let nobody else write to these tables until the end of the transaction, however long."""

    @abstractmethod
    def insert_all(
        self, connection: Connection, table: TableClause, rows: Sequence[Sequence[Any]]
    ) -> None:
        """Insert many new rows; their values in the order of the columns, JSON as text."""

    @abstractmethod
    def upsert(
        self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Insert rows, or replace those with the same key; of several with one key the last. Each
        has a value for every column."""

    def now_ms(self, session: Session) -> int | None:
        """The database's time, UTC milliseconds since 1970; None if it is that of this machine."""
        return None

    def lock(self, connection: Connection, lock: NamedLock) -> None:
        """Hold a lock until the end of the transaction, waiting for it."""

    @abstractmethod
    def try_lock(self, connection: Connection, lock: NamedLock) -> bool:
        """Whether this connection now holds a lock, until it is closed."""

    def among(self, column: Any, numbers: Sequence[int]) -> ColumnElement[bool]:
        """Whether a column holds one of these thousands of numbers."""
        return column.in_(numbers)

    def after_migration(self, connection: Connection) -> None:
        """Make tables alike that migrations make differently."""

    @abstractmethod
    def version(self, engine: Engine) -> str:
        """The version of the database."""

    @abstractmethod
    def bytes(self, engine: Engine) -> int:
        """The bytes the database takes."""

    def count_on(self, connection: Connection, tables: MetaData) -> None:
        """Number the next row of each table after the largest number there is."""

    def shrink_log(self, engine: Engine) -> None:
        """Write what the log holds into the database, if that is for us to do."""
