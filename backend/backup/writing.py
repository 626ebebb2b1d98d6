"""Writing a backup while jobs run, whose copy of the database holds live runs as interrupted by a
power failure. A run writes figures before the checkpoint behind them, and a result after its files.
So checkpoints are held first, then the database is copied, then the other files: no checkpoint is
ahead of the figures, and every file that the copy knows of is there.

The layout of a backup: one uncompressed tar file (weights do not compress), readable by `tar`.
A file of one run has `run.jsonl` in place of a database, and no models.

results.db             the database; runs that were live have been interrupted in it
artifacts/RUN/…        logs, models, exports and small files; checkpoints if asked for
models/…               models of your own in the data folder
manifest.json          version, schema, and size and sha256 of every file; written last
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Literal

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import BackupError
from backend.printable import readable_bytes
from backend.queue.artifacts import run_folder, work_folder
from backend.queue.lifecycle import end_attempt
from backend.settings import settings
from backend.store.copies import copy_database, database_file, opened
from backend.store.migrate import newest_revision
from backend.store.session import now_ms
from backend.store.tables import Attempt, Job, run_name

DATABASE, ARTIFACTS, MODELS, MANIFEST = "results.db", "artifacts", "models", "manifest.json"
ROWS = "run.jsonl"
TOPS = (DATABASE, ARTIFACTS, MODELS)
OF_ONE_RUN = (ROWS, ARTIFACTS)
# Of an archive, by the file it has to hold: what is written can be read back, and reading one from
# a stranger ends soon.
MOST_FILES = {DATABASE: 100_000, ROWS: 10_000}
BLOCK = 2**20  # bytes read at a time

Progress = Callable[[int, int], None]  # bytes done, bytes in total
NOT_WRITTEN = "Nothing was written."
LESS = "Choose another disk, or leave weights out (--no-weights)."
WEIGHTS = frozenset({".safetensors", ".gguf", ".bin", ".pt", ".pth", ".npz", ".npy"})


class ArchivedFile(BaseModel):
    """Size and hex sha256 of one file."""

    bytes: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel):
    """The contents of a backup: name in the archive -> size and checksum. `version`: of Slimscope;
    `created_at`: UTC milliseconds since 1970."""

    format: Literal[1] = 1
    version: str
    schema_revision: str
    created_at: int
    weights: bool
    checkpoints: bool
    files: dict[str, ArchivedFile]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def silent(done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def counted(progress: Progress, total: int) -> Callable[[int], None]:
    """What tells a `Progress` of bytes that have been done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return advance


@dataclass(frozen=True)
class SourceFile:
    """A file to be archived: its name there, where it lies, its bytes."""

    name: str
    path: Path
    bytes: int


def write_backup(
    target: Path,
    *,
    weights: bool = True,
    checkpoints: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Write one file with the database and the files of all runs, under a hidden name until it is
    complete; only its owner can read it. `checkpoints`: unfinished runs go on from them.
    `BackupError` if the file exists, the options contradict each other, or the disk is too full."""
    if checkpoints and not weights:
        raise BackupError(
            NOT_WRITTEN, "Checkpoints consist of weights.", "Choose one of the two options."
        )
    check_new(target)
    settings().artifacts.mkdir(exist_ok=True)
    with (
        TemporaryDirectory(dir=target.parent, prefix=".slimscope-") as folder,
        TemporaryDirectory(dir=settings().artifacts, prefix=".held-") as held,
    ):
        database = Path(folder, DATABASE)
        check_room(target.parent, database_file().stat().st_size, NOT_WRITTEN, LESS)
        # those that there are stay as they are; one that is replaced meanwhile is left out
        for checkpoint in settings().artifacts.glob("*/work/[!.]*") if checkpoints else ():
            kept = Path(held, checkpoint.relative_to(settings().artifacts))
            try:
                if checkpoint.is_dir() and not checkpoint.is_symlink():
                    shutil.copytree(checkpoint, kept, symlinks=True, copy_function=_link)
            except (shutil.Error, OSError):
                shutil.rmtree(kept, ignore_errors=True)
        copy_database(database)
        runs = interrupt_live_runs(database)
        files = [*_files(database, runs, weights, Path(held))]
        return write_archive(target, files, progress, weights=weights, checkpoints=checkpoints)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except PermissionError:  # of file systems without links
        shutil.copy2(source, target)


def write_archive(
    target: Path, files: list[SourceFile], progress: Progress, *, weights: bool, checkpoints: bool
) -> Manifest:
    """Write files and their manifest under a hidden name, and rename it when it is complete."""
    most = max(MOST_FILES.get(file.name, 0) for file in files)
    if len(files) > most:
        raise BackupError(
            NOT_WRITTEN,
            f"It would hold {len(files):,} files; up to {most:,} can be read back.",
            "Delete runs or models that you no longer need.",
        )
    check_room(target.parent, sum(file.bytes for file in files), NOT_WRITTEN, LESS)
    partial = target.with_name(f".{target.name}.partial")
    manifest = Manifest(
        version=version("slimscope"),
        schema_revision=newest_revision(),
        created_at=now_ms(),
        weights=weights,
        checkpoints=checkpoints,
        files={},
    )
    try:
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600, exist_ok=False)
        _write(partial, files, manifest, progress)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return manifest


def check_new(target: Path) -> None:
    """Raise `BackupError` unless a file of that name can be made."""
    if target.exists():
        raise BackupError(NOT_WRITTEN, f"{target} exists already.", "Choose another name.")
    if not target.parent.is_dir():
        raise BackupError(NOT_WRITTEN, f"There is no folder {target.parent}.", "Create it first.")


def check_room(folder: Path, needed: int, refused: str, do: str) -> None:
    """Raise `BackupError` unless the disk of a folder has room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BackupError(
            refused, f"It needs {readable_bytes(needed)}; {readable_bytes(free)} are free.", do
        )


def interrupt_live_runs(database: Path) -> list[str]:
    """End every live attempt in a copy of the database, as the supervisor does after a power
    failure: its run is queued again, or lost where no retry is left. Return the names of all
    runs."""
    with opened(database) as engine:
        with Session(engine) as session, session.begin():
            live = select(Attempt).where(Attempt.ended_at.is_(None))
            for attempt in session.scalars(live).all():
                end_attempt(session, attempt, None, "" if attempt.started_at else "never started")
        with Session(engine) as session:
            return [run_name(*row) for row in session.execute(select(Job.kind, Job.id))]


def _files(database: Path, runs: list[str], weights: bool, held: Path) -> Iterator[SourceFile]:
    yield SourceFile(DATABASE, database, database.stat().st_size)
    for run in runs:
        yield from files_of(run, weights)
        for path, size in _below(held / run):
            yield SourceFile(_named(ARTIFACTS, path, held), path, size)
    if weights:
        models = settings().root / MODELS
        for path, size in _below(models):
            yield SourceFile(_named(MODELS, path, models), path, size)


def files_of(run: str, weights: bool) -> Iterator[SourceFile]:
    """The files in the folder of a run, without its checkpoints."""
    for path, size in _below(run_folder(run)):
        if not path.is_relative_to(work_folder(run)) and (weights or path.suffix not in WEIGHTS):
            yield SourceFile(_named(ARTIFACTS, path, settings().artifacts), path, size)


def _named(top: str, path: Path, root: Path) -> str:
    return f"{top}/{path.relative_to(root).as_posix()}"


def _below(folder: Path) -> Iterator[tuple[Path, int]]:
    """Regular files below a folder and their bytes. Hidden folders are left out: they hold drafts
    of what is being written or deleted."""
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(top, name) for name in sorted(names)):
            if path.is_file() and not path.is_symlink():
                yield path, path.stat().st_size


def _write(partial: Path, files: list[SourceFile], manifest: Manifest, progress: Progress) -> None:
    """Write files, then the manifest. Of a log that grows, what was there when it was opened."""
    advance = counted(progress, sum(file.bytes for file in files))
    with partial.open("wb") as output, tarfile.open(fileobj=output, mode="w") as archive:
        for file in files:
            try:
                source = file.path.open("rb")
            except FileNotFoundError:  # it has been deleted meanwhile
                continue
            with source:
                size = os.fstat(source.fileno()).st_size
                reader = HashingReader(source, advance)
                archive.addfile(_entry(file.name, size), reader)
            manifest.files[file.name] = ArchivedFile(bytes=size, sha256=reader.digest.hexdigest())
        text = manifest.model_dump_json(indent=1).encode()
        archive.addfile(_entry(MANIFEST, len(text)), BytesIO(text))
        archive.close()
        output.flush()
        os.fsync(output.fileno())


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, now_ms() // 1000, 0o644
    return entry


class HashingReader:
    """Reads a file, hashes what was read, and tells how many bytes that were."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self.file, self.advance, self.digest = file, advance, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        self.advance(len(data))
        return data
