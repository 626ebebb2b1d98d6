"""One run as a file: an archive as a backup is, with the rows of the run as lines of JSON in place
of a database. Each line is checked before anything is written. An imported run gets a number of its
own; what pointed to other runs is not carried over, nor is its process's environment."""

import pickle
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError
from sqlalchemy import insert, inspect, select
from sqlalchemy.exc import IntegrityError

from backend.backup import run_rows
from backend.backup.reading import ArchiveReader, open_archive
from backend.backup.writing import (
    ARTIFACTS,
    OF_ONE_RUN,
    ROWS,
    Manifest,
    Progress,
    SourceFile,
    check_new,
    check_room,
    files_of,
    silent,
    write_archive,
)
from backend.errors import BackupError, ConflictError, SlimscopeError
from backend.queue.actor import Actor
from backend.queue.artifacts import run_folder, work_folder
from backend.queue.lifecycle import first_run_id, note
from backend.queue.permissions import require_host
from backend.settings import settings
from backend.store import queries, tables
from backend.store.session import now_ms, reading, writing
from backend.store.states import TERMINAL

NOT_IMPORTED = "The run was not imported."
BATCH = 5_000  # rows
CHECKED = ".checked-rows"  # in the folder of an import
LONGEST_LINE = 2**27  # bytes
MOST_VALUES = 2**16  # of a row: each that is none of a row takes kilobytes to describe
MOST_ROWS, MOST_UNPACKED, MOST_SECONDS = 3_000_000, 2**32, 600.0


def export_run(
    run: str | int, target: Path, *, weights: bool = False, progress: Progress = silent
) -> Manifest:
    """Write a run that has ended into one file: config, figures, statistics, logs, small files;
    with `weights` also the models it saved. Checkpoints are never part of it. Raises NotFoundError,
    ConflictError: there is no such run, or it has not ended; BackupError: the file exists, the disk
    is too full, or a row of the run is damaged."""
    job = queries.job(run)
    if job.state not in TERMINAL:
        raise ConflictError(f"{job.run} cannot be exported.", f"It is {job.state}.", "Wait for it.")
    check_new(target)
    with TemporaryDirectory(dir=target.parent, prefix=".slimscope-") as folder:
        rows = Path(folder, ROWS)
        try:
            with rows.open("wb") as file:
                file.writelines(_lines(job))
        except ValidationError as error:
            raise BackupError(
                "The run was not exported.",
                f"A row is damaged: {_fault(error)}.",
                "Restore a daily copy of the database, or run it again.",
            ) from error
        files = [SourceFile(ROWS, rows, rows.stat().st_size), *files_of(job.run, weights)]
        return write_archive(target, files, progress, weights=weights, checkpoints=False)


def _lines(job: tables.Job) -> Iterator[bytes]:
    """The rows of a run, itself first."""
    keys: dict[type[tables.Table], str] = {tables.Job: "id"}
    keys |= dict.fromkeys(tables.TABLES_OF_A_RUN.values(), "job_id")
    with reading() as session:
        for table, key in keys.items():
            columns = [getattr(table, column.key) for column in inspect(table).column_attrs]
            query = select(*columns).where(inspect(table).columns[key] == job.id)
            for rows in session.execute(query).mappings().partitions(BATCH):
                yield from (run_rows.line_of(table.__tablename__, dict(row)) for row in rows)


def _fault(error: ValidationError) -> str:
    """The first fault of a row, in words."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place or 'the line'}: {first['msg']}"[:300]


# import -------------------------------------------------------------------------------------------


def import_run(
    file: Path,
    actor: Actor,
    check: run_rows.Check,
    progress: Progress = silent,
    *,
    example: int = 0,
) -> tables.Job:
    """Add a run from a file that `export_run` wrote, under a number of its own.

    Args:
        check: of each row, what its kind knows of it.
        example: its place, from 1, among those of its kind that come with the package; else 0.

    Raises:
        BackupError: the file is damaged, unsafe, of a newer version, or holds no single run that
            has ended; the disk is too full. Nothing was written.
    """
    require_host(actor, "import runs")
    root = settings().root
    with open_archive(file, NOT_IMPORTED, OF_ONE_RUN) as archive:
        check_room(root, archive.manifest.bytes, NOT_IMPORTED, "Free some: slimscope disk")
        with TemporaryDirectory(dir=root, prefix=".importing-") as folder:
            archive.unpack(Path(folder), progress)
            return RunImport(Path(folder), archive, check).add(actor, file.name, example)


class RunImport:
    """A run file that has been unpacked: checked as a whole, then added as a whole."""

    def __init__(self, folder: Path, archive: ArchiveReader, check: run_rows.Check) -> None:
        self._folder, self._archive, self._check = folder, archive, check
        self._began, self._unpacked = time.monotonic(), 0
        rows = self._rows()
        first = next(rows, None)
        if not isinstance(first, run_rows.JobRow):
            raise archive.damaged("It does not begin with a run that has ended.")
        self._job, self._run = first, tables.run_name(first.kind, first.id)
        self._check_row(first)
        with (folder / CHECKED).open("wb") as file:
            for row in rows:
                self._check_row(row)
                pickle.dump((row.table, row.columns()), file)
        work = work_folder(self._run).name
        for name in archive.manifest.files:  # none of another run; resuming trusts checkpoints
            top, _, inside = name.partition("/")
            run, _, rest = inside.partition("/")
            hidden = any(part.startswith(".") for part in rest.split("/"))
            kept = rest.split("/")[0].casefold() != work  # some disks know no capitals
            if top == ARTIFACTS and (run != self._run or hidden or not kept):
                raise archive.damaged(f"{name!r} is not a file of {self._run}.")

    def _rows(self) -> Iterator[run_rows.StoredRow]:
        """The rows, one after the other; `BackupError` if a line is none of a run."""
        with (self._folder / ROWS).open("rb") as file:
            for number in range(1, MOST_ROWS + 2):
                line = file.readline(LONGEST_LINE + 1)
                if not line:
                    return
                too_much = len(line) > LONGEST_LINE or line.count(b",") > MOST_VALUES
                if too_much or number > MOST_ROWS:
                    raise self._archive.damaged("It holds more rows, or longer ones, than a run.")
                try:
                    yield run_rows.LINE.validate_json(line)
                except ValidationError as error:
                    raise self._archive.damaged(
                        f"Line {number} of {ROWS} is no row of a run: {_fault(error)}."
                    ) from error

    def _check_row(self, row: run_rows.StoredRow) -> None:
        """Raise `BackupError` for a row that does not belong to this run, or unpacks to more than
        it says; and for a file that takes too long to check."""
        if isinstance(row, run_rows.JobRow) and row is not self._job:
            raise self._archive.damaged("It holds more than one run.")
        if isinstance(row, run_rows.ArtifactRow):
            parts = Path(row.path).parts
            if parts[:1] != (self._run,) or ".." in parts:
                raise self._archive.damaged("An artifact lies outside the folder of the run.")
        try:
            self._unpacked += run_rows.unpacked_bytes(row)
            self._check(self._job.kind, row)
        except (SlimscopeError, ValueError) as error:
            raise self._archive.damaged(
                f"A row of {row.table} is none of a run: {error}"[:500]
            ) from error
        if self._unpacked > MOST_UNPACKED or time.monotonic() - self._began > MOST_SECONDS:
            raise self._archive.damaged("Its histograms are larger than those of a run.")

    def add(self, actor: Actor, file: str, example: int) -> tables.Job:
        """Write the run and move its files into place, both or neither."""
        try:
            with writing(durable=True) as session:
                kind, values = self._job.kind, self._job.columns()
                number = tables.example_number(kind, example) if example else first_run_id(session)
                values |= {"id": number, "config_hash": tables.config_hash(kind, values["config"])}
                session.add(job := tables.Job(**values, owner=actor.name))
                session.flush()
                session.refresh(job)
                for table, rows in self._batches(job):
                    session.execute(insert(tables.TABLES_OF_A_RUN[table]), rows)
                note(session, job.id, "imported", actor.name, f"{self._run} of {file}")
                source, target = self._folder / ARTIFACTS / self._run, run_folder(job.run)
                if target.exists():
                    raise BackupError(
                        NOT_IMPORTED,
                        f"There is a folder {target} already.",
                        "slimscope doctor names artifacts that belong to no run.",
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    source.rename(target)
                else:
                    target.mkdir()
                return job
        except IntegrityError as error:
            raise self._archive.damaged("It holds a row twice.") from error

    def _batches(self, job: tables.Job) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The other rows as they belong to the new run, those of a table together."""
        waiting: dict[str, list[dict[str, Any]]] = {}
        with (self._folder / CHECKED).open("rb") as file, suppress(EOFError):
            while True:
                table, values = pickle.load(file)  # of our own making
                values["job_id"] = job.id
                if table == tables.Attempt.__tablename__:
                    values |= {"token": secrets.token_hex(16), "engine_ref": None}
                    values["ended_at"] = values["ended_at"] or now_ms()
                if table == tables.Artifact.__tablename__:
                    values["path"] = f"{job.run}/{values['path'].removeprefix(f'{self._run}/')}"
                batch = waiting.setdefault(table, [])
                batch.append(values)
                if len(batch) >= BATCH:
                    yield table, waiting.pop(table)
        yield from waiting.items()
