"""One connection pool per process, with read and write transactions. A write transaction of SQLite
has the write lock from its start; one of PostgreSQL locks what it decides about (`dialects`). And
a lock on the database that one process holds, whatever machine it is on."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar, cast

from sqlalchemy import (
    Connection,
    CursorResult,
    Engine,
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
from backend.store.tables import Attempt, Job, Report

Numbered = TypeVar("Numbered", Job, Attempt, Report)
Fetched = TypeVar("Fetched")
_joined = ContextVar[Session | None]("joined", default=None)  # see `one_transaction`, `one_view`
NOW = "now"  # in what a session remembers
ASK_S = 1.0  # between two tries to get a `DatabaseLock`
EXAMPLES = (
    "Write SLIMSCOPE_DATABASE_URL as in sqlite:////data/results.db or "
    "postgresql+psycopg://user@host/slimscope, or leave it unset."
)


def now_ms() -> int:
    """UTC milliseconds since 1970, by the clock of this machine."""
    return time.time_ns() // 1_000_000


def database_ms(session: Session) -> int:
    """UTC milliseconds since 1970, by the one clock that all machines share: that of the database.
    For times that are compared with those of another process. It is asked once a transaction."""
    if (known := session.info.get(NOW)) is None:
        found = dialect_of(session).now_ms(session)
        known = session.info[NOW] = now_ms() if found is None else found
    return int(known)


@lru_cache
def engine_for(url: str) -> Engine:
    """The engine of this database, created once per process. `ConfigError` for no URL, or a
    database for which no driver is installed."""
    try:
        if (dialect := DIALECTS.get(make_url(url).get_backend_name())) is None:
            raise NoSuchModuleError
        engine = create_engine(
            url, json_deserializer=read_json, json_serializer=write_json, **dialect.options()
        )
    except (ArgumentError, ImportError, ValueError) as error:
        why = "It is not the URL of a database."  # SQLAlchemy repeats it, with its password
        if isinstance(error, NoSuchModuleError):
            why = "There is no such kind of database."
        elif isinstance(error, ImportError):
            why = f"The Python package {error.name} is not installed."
        raise ConfigError("The database URL was not accepted.", why, EXAMPLES) from error
    dialect.prepare(engine)
    return engine


@contextmanager
def reading() -> Iterator[Session]:
    """A read-only transaction, which sees one state of the database. Keep it short: readers block
    truncation of SQLite's write-ahead log."""
    if (joined := _joined.get()) is not None:
        yield joined
        return
    engine = engine_for(settings().url)
    with Session(dialect_of(engine).for_reading(engine)) as session:
        yield session


@contextmanager
def one_view() -> Iterator[None]:
    """All that is read inside by this thread is one transaction, and asks a server less often."""
    with reading() as session:
        token = _joined.set(session)
        try:
            yield
        finally:
            _joined.reset(token)


def fetched(query: Select[Fetched]) -> list[Fetched]:
    """The first column of every row, read in a transaction of its own."""
    with reading() as session:
        return list(session.scalars(query))


@contextmanager
def writing(*, durable: bool = False) -> Iterator[Session]:
    """A write transaction, committed on exit, rolled back on an error. `durable`: also survives a
    power failure (state changes), not only a crash (metrics)."""
    if (joined := _joined.get()) is not None:
        yield joined
        joined.flush()
        return
    engine = engine_for(settings().url)
    dialect = dialect_of(engine)
    with (
        dialect.turn(engine),
        engine.connect().execution_options(immediate=True) as connection,
        dialect.surviving_power_cuts(connection) if durable else nullcontext(),
        Session(connection, expire_on_commit=False) as session,
        session.begin(),
    ):
        yield session


@contextmanager
def one_transaction() -> Iterator[None]:
    """All that is read and written inside by this thread is one durable transaction: rows that
    depend on one another are stored together or not at all. Others wait to write meanwhile."""
    with writing(durable=True) as session:
        token = _joined.set(session)
        try:
            yield
        finally:
            _joined.reset(token)


def locked(session: Session, table: type[Numbered], ids: Iterable[int]) -> list[Numbered]:
    """These rows as they are now, in this order; nobody else changes them before the end of the
    transaction. They are locked in the order of their ids, so that no two transactions wait for
    each other; `NoResultFound` if one is not there."""
    wanted = list(ids)
    for number in sorted(set(wanted)):
        session.get_one(table, number, populate_existing=True, with_for_update={"key_share": True})
    return [session.get_one(table, number) for number in wanted]


def alone(session: Session, lock: NamedLock) -> None:
    """Wait until no other transaction holds this lock, and hold it to the end of this one."""
    dialect_of(session).lock(session.connection(), lock)


def change(session: Session, statement: Update) -> int:
    """Execute an UPDATE and return the number of changed rows, for compare-and-set."""
    return cast(CursorResult[Any], session.execute(statement)).rowcount


class DatabaseLock:
    """A lock that is held by a connection of its own: whatever ends the process or cuts it off
    releases it. SQLite needs none: a lock in the folder of its file keeps others away."""

    def __init__(self, engine: Engine, lock: NamedLock) -> None:
        self._engine, self._lock = engine, lock
        self._connection: Connection | None = None
        self._asked_at = float("-inf")

    @property
    def was_held(self) -> bool:
        """Whether this process held the lock when `is_held` last looked."""
        return self._connection is not None or dialect_of(self._engine).one_machine

    def is_held(self) -> bool:
        """Whether this process holds the lock now; it tries to get it if it does not.
        `OperationalError` while the database is away."""
        if dialect_of(self._engine).one_machine:
            return True
        if self._connection is not None:
            try:
                self._connection.execute(select(1))
            except SQLAlchemyError:
                self.release()
            return self._connection is not None
        if time.monotonic() - self._asked_at >= ASK_S:
            self._asked_at = time.monotonic()
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if dialect_of(connection).try_lock(connection, self._lock):
                self._connection = connection
            else:
                connection.close()
        return self._connection is not None

    def release(self) -> None:
        """Let another process have it. The connection is not used again: it would keep the lock."""
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
            self._connection = None
