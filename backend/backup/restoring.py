"""Restoring a backup into an empty data folder. Every file is checked while it is unpacked into a
hidden folder; only when all are whole are they moved into place, the database last: an interrupted
restore leaves none behind."""

import shutil
import sqlite3
from pathlib import Path

from sqlalchemy import inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from backend.backup.archive import DATABASE, TOPS, Manifest, Progress, silent
from backend.backup.reading import ArchiveReader, open_archive
from backend.backup.run_rows import NOT_TAKEN_OVER
from backend.backup.writing import check_room, interrupt_live_runs
from backend.errors import BackupError
from backend.settings import settings
from backend.store.copies import only_tables, opened
from backend.store.migrate import run_migrations
from backend.store.tables import Job, Table

STAGING = ".restoring"
NOT_RESTORED = "The backup was not restored."
ELSEWHERE = "Set SLIMSCOPE_DATA_DIR to a folder on another disk."


def restore_backup(file: Path, progress: Progress = silent) -> Manifest:
    """Restore a backup into the data folder and migrate its database. `BackupError` if the folder
    is not empty or too small, or the file is damaged, unsafe, of a newer version, or no backup."""
    if settings().database_url:
        why = "SLIMSCOPE_DATABASE_URL names another database than that of the data folder."
        raise BackupError(NOT_RESTORED, why, "Unset it.")
    root = settings().root
    root.mkdir(parents=True, exist_ok=True)
    if any(entry.name != STAGING for entry in root.iterdir()):
        do = "Set SLIMSCOPE_DATA_DIR to a new folder."
        raise BackupError(NOT_RESTORED, f"The data folder {root} is not empty.", do)
    staging = root / STAGING
    with open_archive(file, NOT_RESTORED) as archive:
        manifest = archive.manifest
        check_room(root, manifest.bytes, NOT_RESTORED, ELSEWHERE)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            archive.unpack(staging, progress)
            _prepare(staging / DATABASE, archive)
            for top in reversed(TOPS):  # the database last
                if (staging / top).exists():
                    (staging / top).rename(root / top)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _prepare(database: Path, archive: ArchiveReader) -> None:
    """Migrate the unpacked database, and take from it what holds only where the backup was made.
    `BackupError` if that cannot be done, `ConflictError` if another version has made it."""
    try:
        if not only_tables(database):
            raise archive.damaged("Its database holds more than tables.")
        with opened(database) as engine, engine.begin() as connection:
            run_migrations(connection)
            missing = Table.metadata.tables.keys() - {*inspect(connection).get_table_names()}
        if missing:
            raise archive.damaged(f"Its database has no table {min(missing)}.")
        interrupt_live_runs(database)  # none, unless the backup was made by hand
        with opened(database) as engine, Session(engine) as session, session.begin():
            # Not what their processes were given where the backup was made: folders and plugins of
            # another machine, or of whoever made the file. Here they get what this one has.
            for job in session.scalars(select(Job)):
                kept = {n: v for n, v in job.environment.items() if n not in NOT_TAKEN_OVER}
                if kept.keys() != job.environment.keys():
                    job.environment = kept
    except (sqlite3.Error, SQLAlchemyError) as error:
        why = getattr(error, "orig", None) or error  # without the statement
        raise archive.damaged(f"Its database cannot be read: {why}.") from error
