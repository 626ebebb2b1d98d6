"""Read and write transactions of the process's connection pool, and locks across machines.

A write transaction of SQLite holds the write lock from its start; a transaction of PostgreSQL locks
the rows it decides about (see `dialects`)."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar, TypeVarTuple, cast

from sqlalchemy import (
    Connection,
    CursorResult,
    Engine,
    Row,
    Select,
    Update,
    create_engine,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from backend.errors import ConfigError
from backend.settings import settings
from backend.store.dialects import DIALECTS, dialect_of
from backend.store.dialects.base import NamedLock
from backend.store.json_column import read_json, write_json
from backend.store.tables import Attempt, Job, Story

Numbered = TypeVar("Numbered", Job, Attempt, Story)
Fetched = TypeVar("Fetched")
Columns = TypeVarTuple("Columns")
# the session that nested transactions join; see `one_transaction`, `single_snapshot`
_current_session = ContextVar[Session | None]("current_session", default=None)
DATABASE_TIME = "database_time"  # key in the `info` of a session
LOCK_RETRY_S = 1.0  # pause between two attempts to take a `DatabaseLock`
URL_EXAMPLES = (
    "Write SLIMSCOPE_DATABASE_URL as in sqlite:////data/results.db or "
    "postgresql+psycopg://user@host/slimscope, or leave it unset."
)


def now_ms() -> int:
    """UTC milliseconds since 1970, by the clock of this machine."""
    return time.time_ns() // 1_000_000


def database_ms(session: Session) -> int:
    """UTC milliseconds since 1970, by the database's clock, which all machines share.

    For times that are compared between processes. The clock is read once per transaction."""
    if (time_ms := session.info.get(DATABASE_TIME)) is None:
        server_ms = dialect_of(session).now_ms(session)
        time_ms = session.info[DATABASE_TIME] = now_ms() if server_ms is None else server_ms
    return int(time_ms)


@lru_cache
def engine_for(url: str) -> Engine:
    """The engine of a database, created once per process.

    Raises:
        ConfigError: the URL is malformed, or no driver is installed for its database.
    """
    try:
        if (dialect := DIALECTS.get(make_url(url).get_backend_name())) is None:
            raise NoSuchModuleError
        engine = create_engine(
            url, json_deserializer=read_json, json_serializer=write_json, **dialect.options()
        )
    except (ArgumentError, ImportError, ValueError) as error:
        why = "It is not the URL of a database."  # SQLAlchemy's message contains the password
        if isinstance(error, NoSuchModuleError):
            why = "There is no such kind of database."
        elif isinstance(error, ImportError):
            why = f"The Python package {error.name} is not installed."
        raise ConfigError("The database URL was not accepted.", why, URL_EXAMPLES) from error
    dialect.prepare(engine)
    return engine


@contextmanager
def reading() -> Iterator[Session]:
    """A read-only transaction, which sees one state of the database.

    Keep it short: readers block the truncation of SQLite's write-ahead log."""
    if (current := _current_session.get()) is not None:
        yield current
        return
    engine = engine_for(settings().url)
    with Session(dialect_of(engine).for_reading(engine)) as session:
        yield session


@contextmanager
def single_snapshot() -> Iterator[None]:
    """Context in which all reads of this thread join one transaction, for one view of the data and
    fewer requests to a server."""
    with reading() as session:
        token = _current_session.set(session)
        try:
            yield
        finally:
            _current_session.reset(token)


def fetched(query: Select[Fetched]) -> list[Fetched]:
    """The first column of every row of a query, read in one transaction."""
    with reading() as session:
        return list(session.scalars(query))


def fetched_value(query: Select[Fetched]) -> Fetched | None:
    """The first column of the first row of a query, read in one transaction; None without a row."""
    with reading() as session:
        return session.scalar(query)


def fetched_rows(query: Select[*Columns]) -> Sequence[Row[*Columns]]:
    """The rows of a query, read in one transaction."""
    with reading() as session:
        return session.execute(query).all()


@contextmanager
def writing(*, durable: bool = False) -> Iterator[Session]:
    """A write transaction, committed on exit and rolled back after an error.

    Args:
        durable: the commit also survives a power failure (for state changes), not only a crash of
            the process (for metrics).
    """
    if (current := _current_session.get()) is not None:
        yield current
        current.flush()
        return
    engine = engine_for(settings().url)
    dialect = dialect_of(engine)
    with (
        dialect.write_turn(engine),
        engine.connect().execution_options(immediate=True) as connection,
        dialect.durable_commits(connection) if durable else nullcontext(),
        Session(connection, expire_on_commit=False) as session,
        session.begin(),
    ):
        yield session


@contextmanager
def one_transaction() -> Iterator[None]:
    """Context in which all reads and writes of this thread join one durable transaction.

    Related rows are stored together or not at all. Other SQLite writers wait meanwhile."""
    with writing(durable=True) as session:
        token = _current_session.set(session)
        try:
            yield
        finally:
            _current_session.reset(token)


def locked(session: Session, table: type[Numbered], ids: Iterable[int]) -> list[Numbered]:
    """Lock rows until the end of the transaction; return their current state in the given order.

    Rows are locked in the order of their ids, so that two transactions cannot deadlock.

    Raises:
        NoResultFound: a row does not exist.
    """
    row_ids = list(ids)
    for row_id in sorted(set(row_ids)):
        session.get_one(table, row_id, populate_existing=True, with_for_update={"key_share": True})
    return [session.get_one(table, row_id) for row_id in row_ids]


def hold_lock(session: Session, lock: NamedLock) -> None:
    """Wait for a lock and hold it until the end of the transaction."""
    dialect_of(session).lock(session.connection(), lock)


def change(session: Session, statement: Update) -> int:
    """Execute an UPDATE and return the number of changed rows, for compare-and-set."""
    return cast(CursorResult[Any], session.execute(statement)).rowcount


class DatabaseLock:
    """A lock that a separate connection holds, so that the end of the process or of its connection
    releases it.

    SQLite needs none: a lock in the data folder excludes other processes."""

    def __init__(self, engine: Engine, lock: NamedLock) -> None:
        self._engine, self._lock = engine, lock
        self._connection: Connection | None = None
        self._tried_at = float("-inf")

    @property
    def was_held(self) -> bool:
        """True if this process held the lock at the last call of `is_held`."""
        return self._connection is not None or dialect_of(self._engine).one_machine

    def is_held(self) -> bool:
        """Take the lock unless this process holds it; return True if the process holds it now.

        Raises:
            OperationalError: the database is away.
        """
        if dialect_of(self._engine).one_machine:
            return True
        if self._connection is not None:
            try:
                self._connection.execute(select(1))
            except SQLAlchemyError:
                self.release()
            return self._connection is not None
        if time.monotonic() - self._tried_at >= LOCK_RETRY_S:
            self._tried_at = time.monotonic()
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if dialect_of(connection).try_lock(connection, self._lock):
                self._connection = connection
            else:
                connection.close()
        return self._connection is not None

    def release(self) -> None:
        """Release the lock, and close its connection, which would keep it."""
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
            self._connection = None
