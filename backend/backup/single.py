"""Export and import of a single run.

A run file has the layout of a backup, with the rows of the run as lines of JSON instead of a
database. Every line is checked before anything is written. An imported run gets a new number.
References to other runs and the variables of its processes are not imported.
"""

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
    ROWS,
    RUN_FILE_ENTRIES,
    Manifest,
    Progress,
    SourceFile,
    check_disk_space,
    check_target,
    run_files,
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
BATCH_ROWS = 5_000  # rows read or inserted at a time
CHECKED_ROWS = ".checked-rows"  # file with the validated rows, in the folder of an import
# Limits on the work for an untrusted file. Commas limit the values of a row: pydantic needs
# kilobytes to describe each invalid value.
MAX_LINE_BYTES, MAX_COMMAS, MAX_ROWS = 2**27, 2**16, 3_000_000
MAX_UNPACKED_BYTES, MAX_CHECK_S = 2**32, 600.0


def export_run(
    run: str | int, target: Path, *, weights: bool = False, progress: Progress = silent
) -> Manifest:
    """Write a run that has ended into a run file: config, metrics, statistics, logs, small files.

    Checkpoints are never included.

    Args:
        run: name or number of the run.
        target: file to create.
        weights: include the models that the run saved.
        progress: called with the bytes written and the bytes in total.

    Raises:
        NotFoundError: there is no such run.
        ConflictError: the run has not ended.
        BackupError: the file exists, the disk is too full, or a row of the run is damaged.
    """
    job = queries.job(run)
    if job.state not in TERMINAL:
        raise ConflictError(f"{job.run} cannot be exported.", f"It is {job.state}.", "Wait for it.")
    check_target(target)
    with TemporaryDirectory(dir=target.parent, prefix=".slimscope-") as folder:
        rows = Path(folder, ROWS)
        try:
            with rows.open("wb") as file:
                file.writelines(_lines(job))
        except ValidationError as error:
            raise BackupError(
                "The run was not exported.",
                f"A row is damaged: {_first_error(error)}.",
                "Restore a daily copy of the database, or repeat the run.",
            ) from error
        files = [SourceFile(ROWS, rows, rows.stat().st_size), *run_files(job.run, weights)]
        return write_archive(target, files, progress, weights=weights, checkpoints=False)


def _lines(job: tables.Job) -> Iterator[bytes]:
    """Yield the rows of a run as lines; the first one is the row of the run itself."""
    key_columns: dict[type[tables.Table], str] = {tables.Job: "id"}
    key_columns |= dict.fromkeys(tables.TABLES_OF_A_RUN.values(), "job_id")
    with reading() as session:
        for table, key in key_columns.items():
            columns = [getattr(table, column.key) for column in inspect(table).column_attrs]
            query = select(*columns).where(inspect(table).columns[key] == job.id)
            for rows in session.execute(query).mappings().partitions(BATCH_ROWS):
                yield from (run_rows.row_line(table.__tablename__, dict(row)) for row in rows)


def _first_error(error: ValidationError) -> str:
    """The first validation error as "location: message"."""
    first = error.errors(include_url=False)[0]
    location = ".".join(str(part) for part in first["loc"])
    return f"{location or 'the line'}: {first['msg']}"[:300]


# import -------------------------------------------------------------------------------------------


def import_run(
    file: Path,
    actor: Actor,
    check: run_rows.RowCheck,
    progress: Progress = silent,
    *,
    example: int = 0,
) -> tables.Job:
    """Add a run from a file written by `export_run`, under a new number.

    Args:
        file: the run file.
        actor: owner of the new run; must be a host.
        check: checks each row by the rules of the job kind.
        progress: called with the bytes read and the bytes in total.
        example: for a bundled example, its number among those of its kind, from 1; otherwise 0.

    Raises:
        ForbiddenError: the actor is not a host.
        BackupError: the file is damaged, unsafe, from a newer version, or not a single run that has
            ended; or the disk is too full. Nothing was written.
    """
    require_host(actor, "import runs")
    root = settings().root
    with open_archive(file, NOT_IMPORTED, RUN_FILE_ENTRIES) as archive:
        remedy = "Free disk space; slimscope disk shows what uses it."
        check_disk_space(root, archive.manifest.bytes, NOT_IMPORTED, remedy)
        with TemporaryDirectory(dir=root, prefix=".importing-") as folder:
            archive.unpack(Path(folder), progress)
            return RunImport(Path(folder), archive, check).add(actor, file.name, example)


class RunImport:
    """An unpacked run file. The constructor checks all rows and files; `add` writes them."""

    def __init__(self, folder: Path, archive: ArchiveReader, check: run_rows.RowCheck) -> None:
        self._folder, self._archive, self._check = folder, archive, check
        self._start_s, self._unpacked_bytes = time.monotonic(), 0
        rows = self._rows()
        first = next(rows, None)
        if not isinstance(first, run_rows.JobRow):
            raise archive.damaged("It does not begin with a run that has ended.")
        self._job, self._run = first, tables.run_name(first.kind, first.id)
        self._check_row(first)
        with (folder / CHECKED_ROWS).open("wb") as file:
            for row in rows:
                self._check_row(row)
                pickle.dump((row.table, row.columns()), file)
        self._check_files()

    def _check_files(self) -> None:
        """Raise `BackupError` for files of another run, hidden files, and checkpoints: a resumed
        run would trust them."""
        checkpoint_folder = work_folder(self._run).name
        for name in self._archive.manifest.files:
            entry, _, path = name.partition("/")
            run, _, path_in_run = path.partition("/")
            parts = path_in_run.split("/")
            is_hidden = any(part.startswith(".") for part in parts)
            # Some file systems ignore case.
            is_checkpoint = parts[0].casefold() == checkpoint_folder
            if entry == ARTIFACTS and (run != self._run or is_hidden or is_checkpoint):
                raise self._archive.damaged(f"{name!r} is not a file of {self._run}.")

    def _rows(self) -> Iterator[run_rows.StoredRow]:
        """Yield the rows one by one. `BackupError` for a line that is not a row of a run."""
        with (self._folder / ROWS).open("rb") as file:
            for number in range(1, MAX_ROWS + 2):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                too_long = len(line) > MAX_LINE_BYTES or line.count(b",") > MAX_COMMAS
                if too_long or number > MAX_ROWS:
                    raise self._archive.damaged("Its rows are too many or too long for a run.")
                try:
                    yield run_rows.ROW_ADAPTER.validate_json(line)
                except ValidationError as error:
                    raise self._archive.damaged(
                        f"Line {number} of {ROWS} is not a row of a run: {_first_error(error)}."
                    ) from error

    def _check_row(self, row: run_rows.StoredRow) -> None:
        """Raise `BackupError` if a row belongs to another run, is damaged, or is rejected by the
        job kind, or if the file exceeds the limits on unpacked bytes and time."""
        if isinstance(row, run_rows.JobRow) and row is not self._job:
            raise self._archive.damaged("It holds more than one run.")
        if isinstance(row, run_rows.ArtifactRow):
            parts = Path(row.path).parts
            if parts[:1] != (self._run,) or ".." in parts:
                raise self._archive.damaged("An artifact lies outside the folder of the run.")
        try:
            self._unpacked_bytes += run_rows.unpacked_bytes(row)
            self._check(self._job.kind, row)
        except (SlimscopeError, ValueError) as error:
            raise self._archive.damaged(
                f"A row of {row.table} is not valid: {error}"[:500]
            ) from error
        if self._unpacked_bytes > MAX_UNPACKED_BYTES:
            raise self._archive.damaged("Its histograms are larger than those of a run.")
        if time.monotonic() - self._start_s > MAX_CHECK_S:
            raise self._archive.damaged(f"Checking it took more than {MAX_CHECK_S:.0f} s.")

    def add(self, actor: Actor, file: str, example: int) -> tables.Job:
        """Write the rows of the run and move its files into place, in one transaction.

        Args:
            actor: owner of the new run.
            file: name of the run file, for the history of the run.
            example: see `import_run`.
        """
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
                        f"The folder {target} exists already.",
                        "Run slimscope doctor; it lists artifacts without a run.",
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
        """Yield the checked rows in batches of one table, adapted to the new run."""
        batches: dict[str, list[dict[str, Any]]] = {}
        with (self._folder / CHECKED_ROWS).open("rb") as file, suppress(EOFError):
            while True:
                table, values = pickle.load(file)  # safe: written by the constructor
                values["job_id"] = job.id
                if table == tables.Attempt.__tablename__:
                    values |= {"token": secrets.token_hex(16), "engine_ref": None}
                    values["ended_at"] = values["ended_at"] or now_ms()
                if table == tables.Artifact.__tablename__:
                    values["path"] = f"{job.run}/{values['path'].removeprefix(f'{self._run}/')}"
                batch = batches.setdefault(table, [])
                batch.append(values)
                if len(batch) >= BATCH_ROWS:
                    yield table, batches.pop(table)
        yield from batches.items()
