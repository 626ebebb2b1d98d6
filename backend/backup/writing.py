"""Backups of the data folder, written while runs continue.

In the copied database, live runs are marked as interrupted by a power failure. A run records its
metrics before it saves the next checkpoint, and its results after it has saved their files. A
backup therefore links checkpoints first, then copies the database, then reads all other files. As a
result, no checkpoint is newer than the recorded metrics, and the backup contains every file that
the copied database refers to.

A backup is one uncompressed tar file (weights do not compress), readable by `tar`. A run file has
the same layout, with `run.jsonl` instead of the database and without models.

results.db             the database, with live runs marked as interrupted
artifacts/RUN/…        logs, models, exports and small files; checkpoints are optional
models/…               the user's models in the data folder
manifest.json          version, schema, and the size and sha256 of every file; written last
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
# Top-level entries of an archive; the first one is required.
BACKUP_ENTRIES = (DATABASE, ARTIFACTS, MODELS)
RUN_FILE_ENTRIES = (ROWS, ARTIFACTS)
# Limits on the number of files, by required entry. Writing respects the limits of reading, and
# reading an untrusted archive takes bounded time.
MAX_FILES = {DATABASE: 100_000, ROWS: 10_000}
CHUNK_BYTES = 2**20  # bytes per read

Progress = Callable[[int, int], None]  # (bytes processed, bytes in total)
NOT_WRITTEN = "Nothing was written."
SPACE_REMEDY = "Choose another disk, or leave weights out (--no-weights)."
WEIGHT_SUFFIXES = frozenset({".safetensors", ".gguf", ".bin", ".pt", ".pth", ".npz", ".npy"})


class ArchivedFile(BaseModel):
    """Size and hex sha256 of an archived file."""

    bytes: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel):
    """Contents of a backup or run file.

    Attributes:
        version: version of Slimscope that wrote the archive.
        schema_revision: database schema of that version.
        created_at: UTC time in milliseconds since 1970.
        weights: True if weight files are included.
        checkpoints: True if checkpoints of unfinished runs are included.
        files: size and checksum by name in the archive.
    """

    format: Literal[1] = 1
    version: str
    schema_revision: str
    created_at: int
    weights: bool
    checkpoints: bool
    files: dict[str, ArchivedFile]

    @property
    def bytes(self) -> int:
        """Total size of the archived files."""
        return sum(file.bytes for file in self.files.values())


def silent(processed_bytes: int, total_bytes: int) -> None:
    """Ignore progress."""


def byte_counter(progress: Progress, total_bytes: int) -> Callable[[int], None]:
    """Return a function that adds newly processed bytes and reports the sum to `progress`."""
    processed_bytes = 0

    def advance(new_bytes: int) -> None:
        nonlocal processed_bytes
        processed_bytes += new_bytes
        progress(processed_bytes, total_bytes)

    return advance


@dataclass(frozen=True)
class SourceFile:
    """A file to add to an archive.

    Attributes:
        name: name in the archive.
        path: location on disk.
        bytes: size when the file was listed.
    """

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
    """Back up the database and the files of all runs into one archive.

    The archive has a hidden name until it is complete, and only its owner can read it.

    Args:
        target: file to create.
        weights: include weight files.
        checkpoints: include checkpoints, from which unfinished runs resume.
        progress: called with the bytes processed and the bytes in total.

    Raises:
        BackupError: the file exists, the options contradict each other, or the disk is too full.
    """
    if checkpoints and not weights:
        raise BackupError(
            NOT_WRITTEN, "Checkpoints consist of weights.", "Choose one of the two options."
        )
    check_target(target)
    settings().artifacts.mkdir(exist_ok=True)
    with (
        TemporaryDirectory(dir=target.parent, prefix=".slimscope-") as folder,
        TemporaryDirectory(dir=settings().artifacts, prefix=".held-") as links,
    ):
        database = Path(folder, DATABASE)
        check_disk_space(target.parent, database_file().stat().st_size, NOT_WRITTEN, SPACE_REMEDY)
        if checkpoints:
            _link_checkpoints(Path(links))
        copy_database(database)
        runs = interrupt_live_runs(database)
        files = [*_backup_files(database, runs, weights, Path(links))]
        return write_archive(target, files, progress, weights=weights, checkpoints=checkpoints)


def _link_checkpoints(links: Path) -> None:
    """Hard-link all current checkpoints into `links`, so that runs can replace them meanwhile. A
    checkpoint that is replaced during linking is left out."""
    artifacts = settings().artifacts
    for checkpoint in artifacts.glob("*/work/[!.]*"):
        link = Path(links, checkpoint.relative_to(artifacts))
        try:
            if checkpoint.is_dir() and not checkpoint.is_symlink():
                shutil.copytree(checkpoint, link, symlinks=True, copy_function=_link_or_copy)
        except (shutil.Error, OSError):
            shutil.rmtree(link, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except PermissionError:  # the file system has no hard links
        shutil.copy2(source, target)


def write_archive(
    target: Path, files: list[SourceFile], progress: Progress, *, weights: bool, checkpoints: bool
) -> Manifest:
    """Write files and their manifest under a hidden name, then rename the complete archive.

    Raises:
        BackupError: there are too many files, or the disk is too full.
    """
    max_files = max(MAX_FILES.get(file.name, 0) for file in files)
    if len(files) > max_files:
        raise BackupError(
            NOT_WRITTEN,
            f"The archive would contain {len(files):,} files; the limit is {max_files:,}.",
            "Delete runs or models that you no longer need.",
        )
    size = sum(file.bytes for file in files)
    check_disk_space(target.parent, size, NOT_WRITTEN, SPACE_REMEDY)
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
        _write_entries(partial, files, manifest, progress)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return manifest


def check_target(target: Path) -> None:
    """Raise `BackupError` if `target` exists or its folder does not."""
    if target.exists():
        raise BackupError(NOT_WRITTEN, f"{target} exists already.", "Choose another name.")
    if not target.parent.is_dir():
        raise BackupError(NOT_WRITTEN, f"There is no folder {target.parent}.", "Create it first.")


def check_disk_space(folder: Path, needed_bytes: int, failure: str, remedy: str) -> None:
    """Raise `BackupError` if the disk of `folder` has less than `needed_bytes` free. `failure` and
    `remedy` are the first and last sentences of the error."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        why = f"It needs {readable_bytes(needed_bytes)}; {readable_bytes(free_bytes)} are free."
        raise BackupError(failure, why, remedy)


def interrupt_live_runs(database: Path) -> list[str]:
    """End every live attempt in a copy of the database, as the supervisor does after a power
    failure: the run is queued again, or lost if it has no retries left. Return the names of all
    runs."""
    with opened(database) as engine:
        with Session(engine) as session, session.begin():
            live = select(Attempt).where(Attempt.ended_at.is_(None))
            for attempt in session.scalars(live).all():
                end_attempt(session, attempt, None, "" if attempt.started_at else "never started")
        with Session(engine) as session:
            return [run_name(*row) for row in session.execute(select(Job.kind, Job.id))]


def _backup_files(
    database: Path, runs: list[str], weights: bool, links: Path
) -> Iterator[SourceFile]:
    yield SourceFile(DATABASE, database, database.stat().st_size)
    for run in runs:
        yield from run_files(run, weights)
        for path, size in _regular_files(links / run):
            yield SourceFile(_archive_name(ARTIFACTS, path, links), path, size)
    if weights:
        models = settings().root / MODELS
        for path, size in _regular_files(models):
            yield SourceFile(_archive_name(MODELS, path, models), path, size)


def run_files(run: str, weights: bool) -> Iterator[SourceFile]:
    """Yield the files in the folder of a run, without its checkpoints; weight files only if
    `weights` is true."""
    for path, size in _regular_files(run_folder(run)):
        is_checkpoint = path.is_relative_to(work_folder(run))
        if not is_checkpoint and (weights or path.suffix not in WEIGHT_SUFFIXES):
            yield SourceFile(_archive_name(ARTIFACTS, path, settings().artifacts), path, size)


def _archive_name(entry: str, path: Path, root: Path) -> str:
    return f"{entry}/{path.relative_to(root).as_posix()}"


def _regular_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the regular files below a folder with their sizes in bytes. Hidden folders are skipped:
    they hold files that are being written or deleted."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent, name) for name in sorted(names)):
            if path.is_file() and not path.is_symlink():
                yield path, path.stat().st_size


def _write_entries(
    partial: Path, files: list[SourceFile], manifest: Manifest, progress: Progress
) -> None:
    """Write all files, then the manifest. A file that grows meanwhile, such as a log, is
    truncated to its size when it was opened."""
    advance = byte_counter(progress, sum(file.bytes for file in files))
    with partial.open("wb") as output, tarfile.open(fileobj=output, mode="w") as archive:
        for file in files:
            try:
                source = file.path.open("rb")
            except FileNotFoundError:  # deleted after it was listed
                continue
            with source:
                size = os.fstat(source.fileno()).st_size
                reader = HashingReader(source, advance)
                archive.addfile(_tar_entry(file.name, size), reader)
            manifest.files[file.name] = ArchivedFile(bytes=size, sha256=reader.digest.hexdigest())
        text = manifest.model_dump_json(indent=1).encode()
        archive.addfile(_tar_entry(MANIFEST, len(text)), BytesIO(text))
        archive.close()
        output.flush()
        os.fsync(output.fileno())


def _tar_entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, now_ms() // 1000, 0o644
    return entry


class HashingReader:
    """A readable file that hashes its data and passes the number of bytes read to `advance`."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self.file, self.advance, self.digest = file, advance, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        self.advance(len(data))
        return data
