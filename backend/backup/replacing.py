"""Putting a daily copy in place of a damaged database. SQLite would apply the write-ahead log
beside it to the copy, too: both are moved away together, and only while nobody has it open."""

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from backend.errors import BackupError
from backend.queue.launcher import SUPERVISOR
from backend.settings import settings
from backend.store.copies import (
    check_integrity,
    copies_folder,
    database_file,
    database_files,
    only_tables,
)
from backend.store.dialects.choice import dialect_of
from backend.store.migrate import newest_revision, upgrade
from backend.store.session import engine_for

NOT_REPLACED = "The database was not replaced."
SQLITE = b"SQLite format 3\0"  # the first bytes of a database


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
    _check_copy(copy)
    lock = SUPERVISOR.try_lock()
    if lock is None:
        why = "The supervisor of this data folder is at work."
        raise BackupError(NOT_REPLACED, why, "Wait until its runs have ended.")
    try:
        engine = engine_for(settings().url)
        engine.dispose()
        if users := dialect_of(engine).users(engine):
            why = f"Other processes have it open: {', '.join(users)}."
            raise BackupError(NOT_REPLACED, why, "Stop the dashboard, and wait for its runs.")
        kept = _exchange(copy, database)
    finally:
        lock.release()
    upgrade()
    check_integrity()
    return kept


def _check_copy(copy: Path) -> None:
    try:
        with closing(sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro", uri=True)) as opened:
            (found,) = opened.execute("PRAGMA quick_check(1)").fetchone()
            (revision,) = opened.execute("SELECT version_num FROM alembic_version").fetchone()
        plain = only_tables(copy)
    except (sqlite3.Error, TypeError) as error:
        raise BackupError(NOT_REPLACED, f"{copy} cannot be read: {error}.") from error
    if not plain:
        raise BackupError(NOT_REPLACED, f"{copy} holds more than tables.", "Use a daily copy.")
    if found != "ok":
        raise BackupError(NOT_REPLACED, f"{copy} is damaged: {found}.", "Use an older copy.")
    if revision > newest_revision():
        raise BackupError(NOT_REPLACED, f"{copy} was written by a newer version of Slimscope.")


def _exchange(copy: Path, database: Path) -> Path:
    kept = copies_folder() / f"replaced-{time.strftime('%Y-%m-%d-%H%M%S')}.db"
    kept.parent.mkdir(exist_ok=True)
    new = database.with_name(f".{database.name}.new")
    shutil.copyfile(copy, new)
    with new.open("rb+") as opened:
        os.fsync(opened.fileno())
    for old in reversed(database_files()):  # its write-ahead log first
        shutil.move(old, kept.with_name(kept.name + old.name.removeprefix(database.name)))
    new.rename(database)
    return kept
