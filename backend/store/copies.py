"""Copies of an SQLite database in use (for backups, and once a day), and integrity checks.

SQLite's online backup reads one snapshot in a single step. In WAL mode the copy is consistent, does
not wait for writers, and does not block them. An integrity check by SQLite reads the complete
database (about a second per 300 MB) and blocks nobody. Its last result is in a file outside the
database, as a damaged database could lose it.
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

MIN_FREE_BYTES = 10**9  # free space that a daily copy must leave
PARTIAL = ".partial.db"
MAX_PROBLEMS = 20


def has_file() -> bool:
    """Return True if the database is a file, which Slimscope checks and copies."""
    engine = engine_for(settings().url)
    return dialect_of(engine).file(engine.url) is not None


def database_file() -> Path:
    """The file of the database.

    Raises:
        BackupError: the database is not an SQLite file.
    """
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
    """The existing files of an SQLite database and its write-ahead log."""
    engine = engine_for(settings().url)
    return dialect_of(engine).files(engine.url)


def has_database() -> bool:
    """Return True if the database exists, without opening it, which would create an SQLite file."""
    return not has_file() or bool(database_files())


def copy_database(target: Path) -> None:
    """Copy the database into a single file, which replaces an existing one."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    with (
        engine_for(settings().url).connect() as connection,
        closing(sqlite3.connect(target)) as copy,
    ):
        driver_connection(connection).backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # no further files
    with target.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def opened(path: Path) -> Iterator[Engine]:
    """An engine for a database file other than that of the data folder."""
    engine = create_engine(
        f"sqlite:///{path}", json_deserializer=read_json, json_serializer=write_json
    )
    try:
        yield engine
    finally:
        engine.dispose()


def has_only_tables(path: Path) -> bool:
    """Return True if a database file holds nothing but tables and the indexes of our tables.

    Views and triggers would run in our queries, virtual tables load code, and a foreign unique
    index would reject rows."""
    query = "SELECT type, name, coalesce(sql, '') FROM sqlite_master"
    our_indexes = {
        index.name for table in Table.metadata.tables.values() for index in table.indexes
    }
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        database.execute("PRAGMA trusted_schema = OFF")
        return all(
            (kind == "table" and "VIRTUAL" not in sql.upper())
            or (
                kind == "index"
                and (not sql or (name in our_indexes and "UNIQUE" not in sql.upper()))
            )
            for kind, name, sql in database.execute(query)
        )


def daily_copies() -> list[Path]:
    """The daily copies, newest first."""
    return sorted(copies_folder().glob("results-*.db"), reverse=True)


def copy_daily() -> Path | None:
    """Copy the database unless today's copy exists, and delete the oldest copies.

    Returns:
        The new copy; None if today's copy exists, copies are off, or the disk is too full.
    """
    keep, folder = settings().backups, copies_folder()
    today = folder / f"results-{datetime.now(UTC):%Y-%m-%d}.db"
    if not keep or today.exists():
        return None
    if shutil.disk_usage(settings().root).free < database_file().stat().st_size + MIN_FREE_BYTES:
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
    """Advice to repair a damaged database, with the newest daily copy."""
    if not has_file():
        return "See the log of the server."
    copies = daily_copies()
    file = f"backups/{copies[0].name}" if copies else "FILE"
    return f"Stop the dashboard, and run in the data folder: slimscope restore {file}"


def copies_folder() -> Path:
    """The folder of daily copies, and of databases that a copy has replaced."""
    return settings().root / "backups"


@dataclass(frozen=True)
class IntegrityResult:
    """The result of an integrity check.

    Attributes:
        at: time of the check, UTC milliseconds since 1970.
        problems: SQLite's messages; empty for an intact database.
    """

    at: int
    problems: list[str]


def check_integrity() -> IntegrityResult | None:
    """Check the database and save the result; None if it is not an SQLite database.

    Raises:
        sqlite3.OperationalError: the database cannot be read now; it may be intact.
    """
    if not has_file():
        return None
    with engine_for(settings().url).connect() as connection:
        raw = driver_connection(connection)
        try:
            rows = raw.execute(f"PRAGMA quick_check({MAX_PROBLEMS})").fetchall()
            orphans = raw.execute("PRAGMA foreign_key_check").fetchmany(MAX_PROBLEMS)
            problems = [str(text) for (text,) in rows if text != "ok"]
            problems += [
                f"{table}: row {row} has lost its {parent}" for table, row, parent, _ in orphans
            ]
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:  # the database is too damaged to be checked
            problems = [str(error)]
    result = IntegrityResult(now_ms(), problems)
    draft = _result_file().with_suffix(".tmp")
    draft.parent.mkdir(exist_ok=True)
    draft.write_text(json.dumps(asdict(result)))
    draft.replace(_result_file())
    return result


def last_check() -> IntegrityResult | None:
    """The result of the last check; None without one."""
    if not has_file():
        return None  # a saved result would belong to another database
    try:
        result = json.loads(_result_file().read_text())
        return IntegrityResult(int(result["at"]), [str(text) for text in result["problems"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _result_file() -> Path:
    return settings().root / ".slimscope" / "integrity.json"
