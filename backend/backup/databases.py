"""Moving all tables into another database: from a file to a server, and back. The target is filled
in one transaction, committed when every table has been compared: a move that is killed leaves it
empty. Nobody writes to the old database meanwhile. Artifacts stay where they are.

A daily copy takes the place of a damaged database. SQLite would apply the write-ahead log beside it
to the copy, too: both are moved away together, and only while nobody has it open.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Text, inspect, select
from sqlalchemy.exc import DatabaseError, OperationalError

from backend.errors import BackupError
from backend.queue.launcher import SERVING, SUPERVISOR
from backend.settings import settings
from backend.store.copies import (
    check_integrity,
    copies_folder,
    database_file,
    database_files,
    has_only_tables,
)
from backend.store.dialects import dialect_of
from backend.store.dialects.base import NamedLock
from backend.store.json_column import JsonColumn, write_json
from backend.store.migrate import newest_revision, run_migrations, upgrade
from backend.store.session import engine_for
from backend.store.states import LIVE
from backend.store.tables import Job, Table

NOT_MOVED = "Nothing was moved."
BATCH = 10_000  # rows read and written at a time
NO_JSON = ("NaN", "Infinity")  # words that Python writes, and no other program reads
DIGEST_BITS = 256

Told = Callable[[str, int], None]  # name of a table, its rows
NOT_REPLACED = "The database was not replaced."
SQLITE = b"SQLite format 3\0"  # the first bytes of a database


def move_database(url: str, told: Told = lambda table, rows: None) -> int:
    """Copy every table into an empty database, and compare both; return the number of rows.

    Args:
        told: called when a table has been copied and compared.

    Raises:
        BackupError: the target is not empty or cannot hold a value, a run is live, another process
            uses the database, or both differ afterward. Nothing was moved.
        ConfigError, OperationalError: the URL is none; a database cannot be used.
    """
    source, target = engine_for(settings().url), engine_for(url)
    with ExitStack() as held:
        here = held.enter_context(_frozen(source))
        there = held.enter_context(_emptied(target))
        run_migrations(there)
        rows = sum(_move(here, there, table, told) for table in Table.metadata.sorted_tables)
        dialect_of(there).continue_numbering(there, Table.metadata)
    return rows


@contextmanager
def _frozen(source: Engine) -> Iterator[Connection]:
    """A connection to a database that nobody else writes to."""
    with ExitStack() as held:
        for process in (SUPERVISOR, SERVING):
            if (lock := process.try_lock()) is None:
                raise BackupError(
                    NOT_MOVED,
                    f"The {process.name} of this data folder is at work.",
                    "Stop the dashboard, and wait for its runs.",
                )
            held.callback(lock.release)
        source.dispose()
        if users := dialect_of(source).other_users(source):
            raise BackupError(
                NOT_MOVED,
                f"Other processes use the database: {', '.join(users)}.",
                "Stop the dashboards, and wait for their runs.",
            )
        connection = held.enter_context(source.connect().execution_options(immediate=True))
        held.enter_context(connection.begin())
        dialect_of(source).freeze(connection, Table.metadata)
        live = select(Job.kind, Job.id).where(Job.state.in_([*LIVE])).limit(1)
        if connection.execute(live).first():
            raise BackupError(NOT_MOVED, "A run is at work.", "Wait until it has ended, or cancel.")
        yield connection


@contextmanager
def _emptied(target: Engine) -> Iterator[Connection]:
    """A connection to an empty database, which stays empty if the body fails."""
    dialect = dialect_of(target)
    new = not dialect.files(target.url)
    try:
        with (
            target.connect().execution_options(immediate=True) as connection,
            dialect.durable_commits(connection),
            connection.begin(),
        ):
            dialect.lock(connection, NamedLock.MIGRATION)
            ours = Table.metadata.tables
            for name in inspect(connection).get_table_names():
                known = name == "alembic_version"
                if name in ours:
                    known = connection.scalar(select(sa.func.count()).select_from(ours[name])) == 0
                if not known:
                    raise BackupError(
                        NOT_MOVED,
                        f"The table {name} of the new database holds rows.",
                        "Name an empty one.",
                    )
            yield connection
    except BaseException:
        target.dispose()
        for file in dialect.files(target.url) if new else []:
            file.unlink()
        raise


def _move(here: Connection, there: Connection, table: sa.Table, told: Told) -> int:
    columns = (
        (c.name, Text() if isinstance(c.type, JsonColumn) else c.type) for c in table.columns
    )
    raw = sa.table(table.name, *(sa.column(name, kind) for name, kind in columns))
    read = here.execution_options(yield_per=BATCH)
    count = digest = 0
    try:
        for rows in read.execute(_all(table)).partitions():
            values = [_valid(raw, row) for row in rows]
            count, digest = count + len(values), digest + _digest(values)
            dialect_of(there).insert_all(there, raw, values)
    except OperationalError:
        raise
    except DatabaseError as error:
        reason = str(error.orig or error).splitlines()[0]
        raise BackupError(
            NOT_MOVED,
            f"The new database did not take a row of {table.name}: {reason}.",
            "Restore a daily copy if that row is damaged.",
        ) from error
    copied = copied_digest = 0
    for stored in there.execution_options(yield_per=BATCH).execute(_all(table)).partitions():
        copied, copied_digest = copied + len(stored), copied_digest + _digest(stored)
    if (count, digest % 2**DIGEST_BITS) != (copied, copied_digest % 2**DIGEST_BITS):
        raise BackupError(NOT_MOVED, f"The copy of {table.name} differs.", "Try again.")
    told(table.name, count)
    return count


def _all(table: sa.Table) -> sa.Select[Any]:
    """All rows, those that others refer to first."""
    columns = (sa.cast(c, Text) if isinstance(c.type, JsonColumn) else c for c in table.columns)
    return select(*columns).order_by(*table.primary_key.columns)


def _valid(table: sa.TableClause, row: Sequence[Any]) -> tuple[Any, ...]:
    """A row whose JSON is JSON."""
    return tuple(
        write_json(json.loads(value))
        if isinstance(column.type, Text) and value and any(word in value for word in NO_JSON)
        else value
        for column, value in zip(table.columns, row, strict=True)
    )


def _digest(rows: Sequence[Sequence[Any]]) -> int:
    """The sum of the digests of rows, in whatever order they come."""
    digests = (hashlib.sha256(repr(tuple(row)).encode("utf-8", "surrogatepass")) for row in rows)
    return sum(int.from_bytes(digest.digest()) for digest in digests)


def is_database(file: Path) -> bool:
    """Whether a file is an SQLite database, rather than a backup."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(SQLITE)) == SQLITE
    except OSError:
        return False


def replace_database(copy: Path) -> Path:
    """Put a copy in place of the database; return where the old one lies now. `BackupError` if it
    is in use, or the copy is damaged or of a newer version."""
    database = database_file()
    try:
        with closing(sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro", uri=True)) as opened:
            (found,) = opened.execute("PRAGMA quick_check(1)").fetchone()
            (revision,) = opened.execute("SELECT version_num FROM alembic_version").fetchone()
        plain = has_only_tables(copy)
    except (sqlite3.Error, TypeError) as error:
        raise BackupError(NOT_REPLACED, f"{copy} cannot be read: {error}.") from error
    if not plain:
        raise BackupError(NOT_REPLACED, f"{copy} holds more than tables.", "Use a daily copy.")
    if found != "ok":
        raise BackupError(NOT_REPLACED, f"{copy} is damaged: {found}.", "Use an older copy.")
    if revision > newest_revision():
        raise BackupError(NOT_REPLACED, f"{copy} was written by a newer version of Slimscope.")
    if (lock := SUPERVISOR.try_lock()) is None:
        raise BackupError(
            NOT_REPLACED,
            "The supervisor of this data folder is at work.",
            "Wait until its runs have ended.",
        )
    try:
        engine = engine_for(settings().url)
        engine.dispose()
        if users := dialect_of(engine).other_users(engine):
            raise BackupError(
                NOT_REPLACED,
                f"Other processes have it open: {', '.join(users)}.",
                "Stop the dashboard, and wait for its runs.",
            )
        kept = copies_folder() / f"replaced-{time.strftime('%Y-%m-%d-%H%M%S')}.db"
        kept.parent.mkdir(exist_ok=True)
        new = database.with_name(f".{database.name}.new")
        shutil.copyfile(copy, new)
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        for old in reversed(database_files()):  # its write-ahead log first
            shutil.move(old, kept.with_name(kept.name + old.name.removeprefix(database.name)))
        new.rename(database)
    finally:
        lock.release()
    upgrade()
    check_integrity()
    return kept
