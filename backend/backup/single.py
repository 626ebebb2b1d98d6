"""One run as a file: exported from one data folder, imported into another.

The file is an archive as a backup is, whose database holds that run alone. An imported run gets a
number of its own; what pointed to other runs (the one it repeats, its sweep) is not carried over.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Engine, insert, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from backend.backup.archive import ARTIFACTS, DATABASE, Manifest, Progress, silent
from backend.backup.reading import ArchiveReader, open_archive
from backend.backup.writing import SourceFile, check_new, check_room, files_of, write_archive
from backend.errors import BackupError, ConflictError
from backend.queue.folders import run_folder
from backend.queue.lifecycle import first_number, note
from backend.queue.roles import Actor, require_host
from backend.settings import settings
from backend.store import queries
from backend.store.copies import opened
from backend.store.migrate import newest_revision
from backend.store.session import now_ms, reading, writing
from backend.store.states import TERMINAL
from backend.store.tables import (
    OF_A_RUN,
    Artifact,
    Attempt,
    Event,
    Job,
    Table,
    example_number,
)

NOT_IMPORTED = "The run was not imported."
NUMBERED = (Attempt, Event, Artifact)  # whose rows have numbers of their own
PRIVATE = {"settings", "host"}  # of the environment: paths and names of the machine
BATCH = 5_000  # rows
LARGEST = 2**26  # bytes of an unpacked histogram or profile
MIGRATE = "from backend.store.migrate import upgrade; upgrade()"


def export_run(
    run: str | int, target: Path, *, weights: bool = False, progress: Progress = silent
) -> Manifest:
    """Write a run that has ended into one file: config, figures, statistics, logs, small files.

    Args:
        weights: also the models it saved. Checkpoints are never part of it.

    Raises:
        NotFoundError, ConflictError: there is no such run, or it has not ended.
        BackupError: the file exists, or the disk is too full.
    """
    job = queries.job(run)
    if job.state not in TERMINAL:
        raise ConflictError(f"{job.run} cannot be exported.", f"It is {job.state}.", "Wait for it.")
    check_new(target)
    with TemporaryDirectory(dir=target.parent, prefix=".slimscope-") as folder:
        database = Path(folder, DATABASE)
        with opened(database) as engine:
            _write_rows(engine, job)
        whole = SourceFile(DATABASE, database, database.stat().st_size)
        files = [whole, *files_of(job.run, weights, checkpoints=False)]
        return write_archive(target, files, progress, weights=weights, checkpoints=False)


def _write_rows(engine: Engine, job: Job) -> None:
    """A database that holds this run alone."""
    Table.metadata.create_all(engine)
    own = _values(job) | {"parent": None, "sweep": None}
    own["environment"] = {k: v for k, v in job.environment.items() if k not in PRIVATE}
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        revision = {"number": newest_revision()}
        connection.execute(text("INSERT INTO alembic_version VALUES (:number)"), revision)
        connection.execute(insert(Job), own)
        with reading() as session:
            for table in OF_A_RUN:
                for rows in _rows(session, table, job.id):
                    connection.execute(insert(table), rows)


def _values(row: Table) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in inspect(type(row)).column_attrs}


def _rows(
    session: Session, table: type[Table], job_id: int | None = None
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table, or those of one run, `BATCH` at a time."""
    columns = [getattr(table, column.key) for column in inspect(table).column_attrs]
    query = select(*columns)
    if job_id is not None:
        query = query.where(inspect(table).columns["job_id"] == job_id)
    for rows in session.execute(query).mappings().partitions(BATCH):
        yield [dict(row) for row in rows]


# import -------------------------------------------------------------------------------------------


def import_run(
    file: Path, actor: Actor, progress: Progress = silent, *, example: bool = False
) -> Job:
    """Add a run from a file that `export_run` wrote, under a number of its own.

    Args:
        example: it comes with the package, and is named after its kind.

    Raises:
        ForbiddenError: the actor is a guest.
        BackupError: the file is damaged, unsafe, of a newer version, or holds no single run that
            has ended; the disk is too full.
    """
    require_host(actor, "import runs")
    root = settings().root
    with open_archive(file, NOT_IMPORTED) as archive:
        check_room(root, archive.manifest.bytes, NOT_IMPORTED, "Free some: slimscope disk")
        with TemporaryDirectory(dir=root, prefix=".importing-") as folder:
            archive.unpack(Path(folder), progress)
            _migrate(Path(folder), archive)
            with opened(Path(folder, DATABASE)) as engine:
                return _add(engine, Path(folder), archive, file.name, actor, example)


def _migrate(folder: Path, archive: ArchiveReader) -> None:
    """Bring the database of the file to today's tables, in a process that knows no other folder."""
    if archive.manifest.schema_revision == newest_revision():
        return
    variables = os.environ | {"SLIMSCOPE_DATA_DIR": str(folder), "SLIMSCOPE_DATABASE_URL": ""}
    line = [sys.executable, "-c", MIGRATE]
    if subprocess.run(line, env=variables, capture_output=True, check=False).returncode:
        raise archive.damaged("Its database cannot be migrated.")


def _add(
    engine: Engine, folder: Path, archive: ArchiveReader, name: str, actor: Actor, example: bool
) -> Job:
    try:
        with Session(engine) as source:
            found = source.scalars(select(Job)).all()
            if len(found) != 1 or found[0].damaged or found[0].state not in TERMINAL:
                raise archive.damaged("It does not hold one run that has ended.")
            with writing(durable=True) as session:
                job = _add_job(session, found[0], actor, example)
                _copy_rows(source, session, found[0], job, archive)
                note(session, job.id, "imported", actor.name, f"{found[0].run} of {name}")
                _move_files(folder / ARTIFACTS / found[0].run, run_folder(job.run))
                return job
    except SQLAlchemyError as error:
        raise archive.damaged(f"Its database cannot be read: {type(error).__name__}.") from error


def _add_job(session: Session, other: Job, actor: Actor, example: bool) -> Job:
    number = example_number(other.kind) if example else first_number(session)
    values = _values(other) | {
        "id": number, "owner": actor.name, "parent": None, "sweep": None, "desired": "run",
        "disk_bytes": None, "archived_at": None, "removed_at": None, "purged": False,
    }  # fmt: skip
    job = Job(**values)
    session.add(job)
    session.flush()
    session.refresh(job)
    return job


def _copy_rows(
    source: Session, session: Session, other: Job, job: Job, archive: ArchiveReader
) -> None:
    for table in OF_A_RUN:
        for rows in _rows(source, table):
            moved = [_moved(table, row, other, job, archive) for row in rows]
            session.execute(insert(table), moved)


def _moved(
    table: type[Table], row: dict[str, Any], other: Job, job: Job, archive: ArchiveReader
) -> dict[str, Any]:
    """A row as it belongs to the new run."""
    row["job_id"] = job.id
    if table in NUMBERED:
        del row["id"]
    if table is Attempt:
        row |= {"token": secrets.token_hex(16), "engine_ref": None}
        row["ended_at"] = row["ended_at"] or now_ms()
    if table is Artifact:
        inside = f"{other.run}/"
        parts = Path(row["path"]).parts
        if not row["path"].startswith(inside) or ".." in parts:
            raise archive.damaged("An artefact lies outside the folder of the run.")
        row["path"] = f"{job.run}/{row['path'].removeprefix(inside)}"
    for name in ("counts", "values"):
        if isinstance(packed := row.get(name), bytes) and not _unpacks(packed):
            raise archive.damaged("A histogram cannot be unpacked.")
    return row


def _unpacks(packed: bytes) -> bool:
    """Whether it is zlib data of a bounded size."""
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, LARGEST)
    except zlib.error:
        return False
    return unpacker.eof


def _move_files(source: Path, target: Path) -> None:
    if target.exists():
        do = "slimscope doctor names artefacts that belong to no run."
        raise BackupError(NOT_IMPORTED, f"There is a folder {target} already.", do)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        source.rename(target)
    else:
        target.mkdir()
