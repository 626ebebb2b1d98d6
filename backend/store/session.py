"""One connection pool per process, with read and write transactions. A write transaction of SQLite
has the write lock from its start; one of PostgreSQL locks what it decides about (`dialects`)."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar, cast

from sqlalchemy import CursorResult, Engine, Select, Update, create_engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session

from backend.errors import ConfigError
from backend.settings import settings
from backend.store.dialects.base import NamedLock
from backend.store.dialects.choice import dialect_named, dialect_of
from backend.store.json_column import read_json, write_json
from backend.store.tables import Attempt, Job, Report

Numbered = TypeVar("Numbered", Job, Attempt, Report)
Fetched = TypeVar("Fetched")
_joined = ContextVar[Session | None]("joined", default=None)  # see `one_transaction`, `one_view`
NOW = "now"  # in what a session remembers
NOT_ACCEPTED = "The database URL was not accepted."
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
        if (dialect := dialect_named(url)) is None:
            raise NoSuchModuleError
        engine = create_engine(
            url, json_deserializer=read_json, json_serializer=write_json, **dialect.options()
        )
    except (ArgumentError, ImportError, ValueError) as error:
        raise ConfigError(NOT_ACCEPTED, _reason(error), EXAMPLES) from error
    dialect.prepare(engine)
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
