"""Copies of an SQLite database while others write to it, one for a backup and a daily one, and
checks of it. SQLite's online backup reads one snapshot in a single step, so a copy is consistent,
and neither waits for writers nor makes them wait: the database is in WAL mode.

SQLite's own checks of the database, and their last result, kept in a file beside it: a damaged
database cannot be trusted with it. A check reads the whole database (about a second per 300 MB) and
holds up nobody.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, create_engine

from backend.errors import BackupError
from backend.settings import settings
from backend.store.dialects import dialect_of
from backend.store.dialects.base import driver_connection
from backend.store.json_column import read_json, write_json
from backend.store.session import engine_for, now_ms
from backend.store.tables import Table

SPARE_BYTES = 10**9  # that a daily copy leaves free on the disk
PARTIAL = ".partial.db"
MOST_PROBLEMS = 20


def has_file() -> bool:
    """Whether the database is a file, to be checked and copied by us."""
    engine = engine_for(settings().url)
    return dialect_of(engine).file(engine.url) is not None


def database_file() -> Path:
    """The file of the database; `BackupError` if it is not an SQLite file."""
    engine = engine_for(settings().url)
    dialect = dialect_of(engine)
    if (file := dialect.file(engine.url)) is None:
        raise BackupError(
            "The database is not an SQLite file.",
            f"SLIMSCOPE_DATABASE_URL names a {dialect.title} database.",
            dialect.backup_advice,
        )
    return file


def database_files() -> list[Path]:
    """The files of an SQLite database that exist, and of its write-ahead log."""
    engine = engine_for(settings().url)
    return dialect_of(engine).files(engine.url)


def has_database() -> bool:
    """Whether there is a database. Looking into an SQLite file that is not there creates it."""
    return not has_file() or bool(database_files())


def copy_database(target: Path) -> None:
    """Copy the database into one file that needs no other; an existing file is replaced."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    with (
        engine_for(settings().url).connect() as connection,
        closing(sqlite3.connect(target)) as copy,
    ):
        driver_connection(connection).backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # no files beside it
    with target.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def opened(path: Path) -> Iterator[Engine]:
    """An engine for another database file than that of the data folder."""
    engine = create_engine(
        f"sqlite:///{path}", json_deserializer=read_json, json_serializer=write_json
    )
    try:
        yield engine
    finally:
        engine.dispose()


def only_tables(path: Path) -> bool:
    """Whether a database file holds tables and our indexes alone. Views and triggers would run in
    the queries of whoever uses it, virtual tables load code, and a unique index of somebody's own
    would refuse rows."""
    found = "SELECT type, name, coalesce(sql, '') FROM sqlite_master"
    ours = {index.name for table in Table.metadata.tables.values() for index in table.indexes}
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        database.execute("PRAGMA trusted_schema = OFF")
        return all(
            (kind == "table" and "VIRTUAL" not in sql.upper())
            or (kind == "index" and (not sql or (name in ours and "UNIQUE" not in sql.upper())))
            for kind, name, sql in database.execute(found)
        )


def daily_copies() -> list[Path]:
    """The daily copies, the newest first."""
    return sorted(copies_folder().glob("results-*.db"), reverse=True)


def copy_daily() -> Path | None:
    """Copy the database unless today's copy exists, and delete the oldest copies. None if there is
    nothing to do, or the disk is too full for another copy."""
    keep, folder = settings().backups, copies_folder()
    today = folder / f"results-{datetime.now(UTC):%Y-%m-%d}.db"
    if not keep or today.exists():
        return None
    if shutil.disk_usage(settings().root).free < database_file().stat().st_size + SPARE_BYTES:
        return None
    folder.mkdir(exist_ok=True)
    try:
        copy_database(folder / PARTIAL)
        (folder / PARTIAL).rename(today)
    finally:
        (folder / PARTIAL).unlink(missing_ok=True)
    for old in daily_copies()[keep:]:
        with suppress(OSError):
            old.unlink()
    return today


def repair_advice() -> str:
    if not has_file():
        return "See the log of the server."
    copies = daily_copies()
    file = f"backups/{copies[0].name}" if copies else "FILE"
    return f"Stop the dashboard, and run in the data folder: slimscope restore {file}"


def copies_folder() -> Path:
    """Where daily copies lie, and databases that were replaced by one."""
    return settings().root / "backups"


@dataclass(frozen=True)
class IntegrityResult:
    """The result of a check at `at`, UTC milliseconds since 1970: problems as SQLite words them."""

    at: int
    problems: list[str]


def check_integrity() -> IntegrityResult | None:
    """Check the database and keep the result; None if it is not an SQLite database. Raises
    `sqlite3.OperationalError` if it cannot be read now, which says nothing about it."""
    if not has_file():
        return None
    with engine_for(settings().url).connect() as connection:
        raw = driver_connection(connection)
        try:
            rows = raw.execute(f"PRAGMA quick_check({MOST_PROBLEMS})").fetchall()
            orphans = raw.execute("PRAGMA foreign_key_check").fetchmany(MOST_PROBLEMS)
            problems = [str(text) for (text,) in rows if text != "ok"]
            problems += [f"{table}: row {row} has lost its {of}" for table, row, of, _ in orphans]
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:  # too damaged to be checked
            problems = [str(error)]
    result = IntegrityResult(now_ms(), problems)
    draft = _file().with_suffix(".tmp")
    draft.parent.mkdir(exist_ok=True)
    draft.write_text(json.dumps(asdict(result)))
    draft.replace(_file())
    return result


def last_check() -> IntegrityResult | None:
    if not has_file():
        return None  # it is that of another database
    try:
        stored = json.loads(_file().read_text())
        return IntegrityResult(int(stored["at"]), [str(text) for text in stored["problems"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file() -> Path:
    return settings().root / ".slimscope" / "integrity.json"
