"""Moving all tables into another database, and replacing a damaged database by a daily copy.

A move works from an SQLite file to a server and back. The target is filled in one transaction,
which is committed after every table has been compared with the source: an interrupted move leaves
the target empty. The source is locked against writers meanwhile. Artifacts are not moved.

A replaced database is moved away together with its write-ahead log, because SQLite would apply that
log to the new file. This is done only while no process has the database open.
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
NOT_REPLACED = "The database was not replaced."
BATCH_ROWS = 10_000  # rows read and written at a time
NON_JSON_WORDS = ("NaN", "Infinity")  # written by Python, rejected by other JSON parsers
DIGEST_BITS = 256
SQLITE_SIGNATURE = b"SQLite format 3\0"  # first bytes of a database file

TableProgress = Callable[[str, int], None]  # (name of a table, its number of rows)


def move_database(url: str, progress: TableProgress = lambda table, rows: None) -> int:
    """Copy every table into an empty database, compare both, and return the number of rows.

    Args:
        url: SQLAlchemy URL of the target.
        progress: called after each table has been copied and compared.

    Raises:
        BackupError: the target is not empty or rejects a value, a run is live, another process uses
            the database, or the copies differ. Nothing was moved.
        ConfigError: the URL is invalid.
        OperationalError: a database cannot be used.
    """
    source, target = engine_for(settings().url), engine_for(url)
    with ExitStack() as stack:
        source_connection = stack.enter_context(_frozen_source(source))
        target_connection = stack.enter_context(_empty_target(target))
        run_migrations(target_connection)
        rows = sum(
            _move_table(source_connection, target_connection, table, progress)
            for table in Table.metadata.sorted_tables
        )
        dialect_of(target_connection).continue_numbering(target_connection, Table.metadata)
    return rows


@contextmanager
def _frozen_source(source: Engine) -> Iterator[Connection]:
    """Open a connection that locks the database against all other writers."""
    with ExitStack() as stack:
        for process in (SUPERVISOR, SERVING):
            if (lock := process.try_lock()) is None:
                raise BackupError(
                    NOT_MOVED,
                    f"The {process.name} of this data folder is running.",
                    "Stop the dashboard, and wait for its runs.",
                )
            stack.callback(lock.release)
        _require_unused(source, NOT_MOVED)
        connection = stack.enter_context(source.connect().execution_options(immediate=True))
        stack.enter_context(connection.begin())
        dialect_of(source).freeze(connection, Table.metadata)
        live = select(Job.kind, Job.id).where(Job.state.in_([*LIVE])).limit(1)
        if connection.execute(live).first():
            raise BackupError(NOT_MOVED, "A run is live.", "Wait until it has ended, or cancel it.")
        yield connection


def _require_unused(engine: Engine, failure: str) -> None:
    """Raise `BackupError` if other processes have the database open. Closes the connections of this
    process. `failure`: the first sentence of the error."""
    engine.dispose()
    if users := dialect_of(engine).other_users(engine):
        raise BackupError(
            failure,
            f"Other processes use the database: {', '.join(users)}.",
            "Stop the dashboards, and wait for their runs.",
        )


@contextmanager
def _empty_target(target: Engine) -> Iterator[Connection]:
    """Open a connection to an empty database, which stays empty if the body fails."""
    dialect = dialect_of(target)
    is_new = not dialect.files(target.url)
    try:
        with (
            target.connect().execution_options(immediate=True) as connection,
            dialect.durable_commits(connection),
            connection.begin(),
        ):
            dialect.lock(connection, NamedLock.MIGRATION)
            for name in {*inspect(connection).get_table_names()} - {"alembic_version"}:
                table = Table.metadata.tables.get(name)
                if table is None or connection.scalar(select(sa.func.count()).select_from(table)):
                    raise BackupError(
                        NOT_MOVED,
                        f"The table {name} of the new database holds rows.",
                        "Choose an empty database.",
                    )
            yield connection
    except BaseException:
        target.dispose()
        if is_new:
            for file in dialect.files(target.url):
                file.unlink()
        raise


def _move_table(
    source: Connection, target: Connection, table: sa.Table, progress: TableProgress
) -> int:
    """Copy a table, compare the digests of both, and return the number of rows."""
    columns = (
        (c.name, Text() if isinstance(c.type, JsonColumn) else c.type) for c in table.columns
    )
    text_table = sa.table(table.name, *(sa.column(name, type_) for name, type_ in columns))
    query = _text_query(table)
    rows = digest = 0
    try:
        for batch in source.execution_options(yield_per=BATCH_ROWS).execute(query).partitions():
            values = [_with_valid_json(text_table, row) for row in batch]
            rows, digest = rows + len(values), digest + _digest(values)
            dialect_of(target).insert_all(target, text_table, values)
    except OperationalError:
        raise
    except DatabaseError as error:
        reason = str(error.orig or error).splitlines()[0]
        raise BackupError(
            NOT_MOVED,
            f"The new database rejected a row of {table.name}: {reason}.",
            "Restore a daily copy if that row is damaged.",
        ) from error
    copied_rows = copied_digest = 0
    for copies in target.execution_options(yield_per=BATCH_ROWS).execute(query).partitions():
        copied_rows, copied_digest = copied_rows + len(copies), copied_digest + _digest(copies)
    if (rows, digest % 2**DIGEST_BITS) != (copied_rows, copied_digest % 2**DIGEST_BITS):
        raise BackupError(NOT_MOVED, f"The copy of {table.name} differs.", "Try again.")
    progress(table.name, rows)
    return rows


def _text_query(table: sa.Table) -> sa.Select[Any]:
    """Select all rows in the order of the primary key, so that rows come after the rows of the same
    table that they refer to. JSON columns are selected as text."""
    columns = (sa.cast(c, Text) if isinstance(c.type, JsonColumn) else c for c in table.columns)
    return select(*columns).order_by(*table.primary_key.columns)


def _with_valid_json(table: sa.TableClause, row: Sequence[Any]) -> tuple[Any, ...]:
    """Return a row whose JSON has no NaN or infinity: PostgreSQL rejects both."""
    return tuple(
        write_json(json.loads(value))
        if isinstance(column.type, Text) and value and any(word in value for word in NON_JSON_WORDS)
        else value
        for column, value in zip(table.columns, row, strict=True)
    )


def _digest(rows: Sequence[Sequence[Any]]) -> int:
    """The sum of the sha256 digests of the rows, which does not depend on their order."""
    digests = (hashlib.sha256(repr(tuple(row)).encode("utf-8", "surrogatepass")) for row in rows)
    return sum(int.from_bytes(digest.digest()) for digest in digests)


def is_database(file: Path) -> bool:
    """Return True if a file is an SQLite database, rather than a backup."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(SQLITE_SIGNATURE)) == SQLITE_SIGNATURE
    except OSError:
        return False


def replace_database(copy: Path) -> Path:
    """Replace the database by a copy, and return the new location of the old file. `BackupError` if
    the database is in use, or the copy is damaged or from a newer version of Slimscope."""
    database = database_file()
    _check_copy(copy)
    if (lock := SUPERVISOR.try_lock()) is None:
        raise BackupError(
            NOT_REPLACED,
            "The supervisor of this data folder is running.",
            "Wait until its runs have ended.",
        )
    try:
        _require_unused(engine_for(settings().url), NOT_REPLACED)
        replaced = copies_folder() / f"replaced-{time.strftime('%Y-%m-%d-%H%M%S')}.db"
        replaced.parent.mkdir(exist_ok=True)
        new = database.with_name(f".{database.name}.new")
        shutil.copyfile(copy, new)
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        for old in reversed(database_files()):  # the write-ahead log first
            suffix = old.name.removeprefix(database.name)
            shutil.move(old, replaced.with_name(replaced.name + suffix))
        new.rename(database)
    finally:
        lock.release()
    upgrade()
    check_integrity()
    return replaced


def _check_copy(copy: Path) -> None:
    """Raise `BackupError` if a copy is damaged, holds more than tables, or is too new."""
    try:
        with closing(
            sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            (check_result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        is_plain = has_only_tables(copy)
    except (sqlite3.Error, TypeError) as error:
        raise BackupError(NOT_REPLACED, f"{copy} cannot be read: {error}.") from error
    if not is_plain:
        raise BackupError(NOT_REPLACED, f"{copy} holds more than tables.", "Use a daily copy.")
    if check_result != "ok":
        raise BackupError(NOT_REPLACED, f"{copy} is damaged: {check_result}.", "Use an older copy.")
    if revision > newest_revision():
        raise BackupError(NOT_REPLACED, f"{copy} was written by a newer version of Slimscope.")
