"""Reading an archive that may be damaged or unsafe, and restoring a backup from it into an empty
data folder: nothing is used before its checksum matches. Every file is checked while it is unpacked
into a hidden folder; only when all are whole are they moved into place, the database last: an
interrupted restore leaves none behind."""

import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pydantic import ValidationError
from sqlalchemy import inspect, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from backend.backup.run_rows import NOT_TAKEN_OVER
from backend.backup.writing import (
    BLOCK,
    DATABASE,
    MANIFEST,
    MOST_FILES,
    TOPS,
    HashingReader,
    Manifest,
    Progress,
    check_room,
    counted,
    interrupt_live_runs,
    silent,
)
from backend.errors import BackupError
from backend.settings import settings
from backend.store.copies import has_only_tables, opened
from backend.store.migrate import newest_revision, run_migrations
from backend.store.session import now_ms
from backend.store.tables import ApiKey, Job, Table

# A manifest is bounded before it is parsed, by the names in the archive: bytes of a file besides
# its name, and of a letter of the name as JSON; colons of a file besides those of its name. What is
# small is parsed in any case.
FILE_BYTES, LETTER_BYTES, SMALL_BYTES = 200, 6, 2**16
FILE_COLONS, SMALL_COLONS = 3, 2**10
MAX_NAME, MAX_PART, MAX_PARTS = 1000, 255, 100  # bytes of a name and of its parts; their number
STAGING = ".restoring"
NOT_RESTORED = "The backup was not restored."
ELSEWHERE = "Set SLIMSCOPE_DATA_DIR to a folder on another disk."


@contextmanager
def open_archive(file: Path, refused: str, tops: Sequence[str] = TOPS) -> "Iterator[ArchiveReader]":
    """Open a backup or an exported run.

    Args:
        refused: the sentence that errors begin with.
        tops: the file it has to hold, and the folders it may.

    Raises:
        BackupError: it is missing, damaged, unsafe, of a newer version, or no archive of ours.
    """
    if not file.is_file():
        raise BackupError(refused, f"There is no file {file}.")
    try:
        with tarfile.open(file, "r:") as archive:
            yield ArchiveReader(archive, refused, tops)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _damaged(refused, f"It cannot be read: {error}.") from error


def _damaged(refused: str, why: str) -> BackupError:
    return BackupError(refused, f"The file is damaged or no backup. {why}", "Use another one.")


class ArchiveReader:
    """An archive whose list of files is safe and complete."""

    def __init__(self, archive: tarfile.TarFile, refused: str, tops: Sequence[str]) -> None:
        self._archive, self._refused, self._tops = archive, refused, tops
        self._entries: dict[str, tarfile.TarInfo] = {}
        most = MOST_FILES[tops[0]]
        for entry in archive:
            if entry.name in self._entries:
                raise self.damaged(f"It holds {entry.name!r} twice.")
            if len(self._entries) > most:  # and the manifest
                raise self.damaged(f"It holds more than {most:,} files.")
            self._entries[entry.name] = entry
        self.manifest = self._read_manifest()
        self._check_contents()

    def damaged(self, why: str) -> BackupError:
        return _damaged(self._refused, why)

    def _read_manifest(self) -> Manifest:
        entry = self._entries.pop(MANIFEST, None)
        plain = entry is not None and entry.isreg() and not entry.issparse()
        if entry is None or not plain:
            raise self.damaged("It has no manifest.")
        names = [os.fsencode(name) for name in self._entries]
        most = SMALL_BYTES + sum(
            FILE_BYTES + LETTER_BYTES * min(len(name), MAX_NAME) for name in names
        )
        colons = SMALL_COLONS + sum(FILE_COLONS + name.count(b":") for name in names)
        source = self._archive.extractfile(entry)
        assert source is not None  # a regular file
        text = source.read(most + 1)
        if len(text) > most or text.count(b":") > colons:
            raise self.damaged("Its manifest names more files than it holds.")
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise self.damaged("Its manifest cannot be read.") from error
        if manifest.schema_revision > newest_revision():
            raise BackupError(
                self._refused,
                f"It was written by Slimscope {manifest.version}, whose database is newer.",
                "Install that version or a later one.",
            )
        return manifest

    def _check_contents(self) -> None:
        """Raise `BackupError` unless the archive holds the files of the manifest, and no other
        entry: regular files inside the folders of a backup, each as long as the manifest says. A
        sparse file is none: it unpacks to more than the archive holds."""
        entries, files = self._entries, self.manifest.files
        for name, entry in entries.items():
            try:
                safe = tarfile.data_filter(entry, str(settings().root)).name == name
            except tarfile.FilterError:
                safe = False
            regular = entry.isreg() and not entry.issparse()
            # written in the one way that leads to its file, and one that can be a file's here
            parts = name.split("/")
            sizes = [len(os.fsencode(part)) for part in parts]
            short = max(sizes) <= MAX_PART and sum(sizes) <= MAX_NAME and len(parts) <= MAX_PARTS
            plain = short and not {"", ".", ".."} & {*parts}
            if not safe or not regular or not plain or parts[0] not in self._tops:
                raise self.damaged(f"{name!r} is not a file of a backup.")
            if any(str(parent) in entries for parent in PurePosixPath(name).parents):
                raise self.damaged(f"{name!r} lies in a file.")
        if missing := files.keys() - entries.keys():
            raise self.damaged(f"{min(missing)} is missing.")
        if others := entries.keys() - files.keys():
            raise self.damaged(f"{min(others)!r} is not in its manifest.")
        for name, expected in files.items():
            if entries[name].size != expected.bytes:
                raise self.damaged(f"{name!r} is not as long as its manifest says.")
        if self._tops[0] not in entries:
            raise self.damaged(f"It holds no {self._tops[0]}.")

    def unpack(self, folder: Path, progress: Progress) -> None:
        """Unpack all files into a folder, and compare them with their checksums."""
        advance = counted(progress, self.manifest.bytes)
        for name, expected in self.manifest.files.items():
            source = self._archive.extractfile(self._entries[name])
            assert source is not None  # a regular file
            reader, path = HashingReader(source, advance), folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as output:
                shutil.copyfileobj(reader, output, BLOCK)
                size = output.tell()
            if (size, reader.digest.hexdigest()) != (expected.bytes, expected.sha256):
                raise self.damaged(f"{name} differs from its checksum.")


def restore_backup(file: Path, progress: Progress = silent) -> Manifest:
    """Restore a backup into the data folder and migrate its database. `BackupError` if the folder
    is not empty or too small, or the file is damaged, unsafe, of a newer version, or no backup."""
    if settings().database_url:
        raise BackupError(
            NOT_RESTORED,
            "SLIMSCOPE_DATABASE_URL names another database than that of the data folder.",
            "Unset it.",
        )
    root = settings().root
    root.mkdir(parents=True, exist_ok=True)
    if any(entry.name != STAGING for entry in root.iterdir()):
        raise BackupError(
            NOT_RESTORED,
            f"The data folder {root} is not empty.",
            "Set SLIMSCOPE_DATA_DIR to a new folder.",
        )
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
        if not has_only_tables(database):
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
            # Whoever made the file may have kept a key in it.
            held = ApiKey.revoked_at.is_(None)
            session.execute(update(ApiKey).where(held).values(revoked_at=now_ms()))
    except (sqlite3.Error, SQLAlchemyError) as error:
        why = getattr(error, "orig", None) or error  # without the statement
        raise archive.damaged(f"Its database cannot be read: {why}.") from error
