"""Reading of archives that may be damaged or malicious, and restoring a backup into an empty data
folder.

Every file is unpacked into a hidden folder and compared with its checksum before it is used. The
files are moved into place only if all of them are intact. The database is moved last, so an
interrupted restore leaves no database behind.
"""

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

from backend.backup.run_rows import without_machine_fields
from backend.backup.writing import (
    BACKUP_ENTRIES,
    CHUNK_BYTES,
    DATABASE,
    MANIFEST,
    MAX_FILES,
    HashingReader,
    Manifest,
    Progress,
    byte_counter,
    check_disk_space,
    interrupt_live_runs,
    silent,
)
from backend.errors import BackupError
from backend.settings import settings
from backend.store.copies import has_only_tables, opened
from backend.store.migrate import newest_revision, run_migrations
from backend.store.session import now_ms
from backend.store.tables import ApiKey, Job, Table

# The size of a manifest is limited before it is parsed. The limit is a base value plus an allowance
# for each file in the archive: its JSON entry, and its name with every character escaped.
BASE_MANIFEST_BYTES, ENTRY_BYTES, ESCAPED_BYTES = 2**16, 200, 6
# Colons limit the number of JSON objects and keys in the same way.
BASE_MANIFEST_COLONS, ENTRY_COLONS = 2**10, 3
MAX_NAME_BYTES, MAX_PART_BYTES, MAX_NAME_PARTS = 1000, 255, 100
STAGING = ".restoring"
NOT_RESTORED = "The backup was not restored."
DISK_REMEDY = "Set SLIMSCOPE_DATA_DIR to a folder on another disk."


@contextmanager
def open_archive(
    file: Path, failure: str, top_level: Sequence[str] = BACKUP_ENTRIES
) -> "Iterator[ArchiveReader]":
    """Open a backup or a run file, and check its list of files.

    Args:
        file: the archive.
        failure: the first sentence of errors.
        top_level: names allowed at the top level; the first one is required.

    Raises:
        BackupError: the archive is missing, damaged, unsafe, from a newer version of Slimscope, or
            not an archive of Slimscope.
    """
    if not file.is_file():
        raise BackupError(failure, f"There is no file {file}.")
    try:
        with tarfile.open(file, "r:") as archive:
            yield ArchiveReader(archive, failure, top_level)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _damage_error(failure, f"It cannot be read: {error}.") from error


def _damage_error(failure: str, why: str) -> BackupError:
    return BackupError(failure, f"The file is damaged or not a backup. {why}", "Use another file.")


class ArchiveReader:
    """An open archive with a safe and complete list of files."""

    def __init__(self, archive: tarfile.TarFile, failure: str, top_level: Sequence[str]) -> None:
        self._archive, self._failure, self._top_level = archive, failure, top_level
        self._entries: dict[str, tarfile.TarInfo] = {}
        max_files = MAX_FILES[top_level[0]]
        for entry in archive:
            if entry.name in self._entries:
                raise self.damaged(f"It holds {entry.name!r} twice.")
            if len(self._entries) > max_files:  # the manifest is not counted
                raise self.damaged(f"It holds more than {max_files:,} files.")
            self._entries[entry.name] = entry
        self.manifest = self._read_manifest()
        self._check_contents()

    def damaged(self, why: str) -> BackupError:
        """Return the error for damaged or unsafe contents. `why`: one sentence."""
        return _damage_error(self._failure, why)

    def _read_manifest(self) -> Manifest:
        entry = self._entries.pop(MANIFEST, None)
        if entry is None or not entry.isreg() or entry.issparse():
            raise self.damaged("It has no manifest.")
        names = [os.fsencode(name) for name in self._entries]
        max_bytes = BASE_MANIFEST_BYTES + sum(
            ENTRY_BYTES + ESCAPED_BYTES * min(len(name), MAX_NAME_BYTES) for name in names
        )
        max_colons = BASE_MANIFEST_COLONS + sum(ENTRY_COLONS + name.count(b":") for name in names)
        source = self._archive.extractfile(entry)
        assert source is not None  # a regular file
        text = source.read(max_bytes + 1)
        if len(text) > max_bytes or text.count(b":") > max_colons:
            raise self.damaged("Its manifest names more files than it holds.")
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise self.damaged("Its manifest cannot be read.") from error
        if manifest.schema_revision > newest_revision():
            raise BackupError(
                self._failure,
                f"It was written by Slimscope {manifest.version}, which has a newer database.",
                "Install that version or a later one.",
            )
        return manifest

    def _check_contents(self) -> None:
        """Raise `BackupError` unless the archive holds exactly the files of the manifest, with the
        sizes listed there."""
        entries, files = self._entries, self.manifest.files
        for name, entry in entries.items():
            if not self._is_safe(name, entry):
                raise self.damaged(f"{name!r} is not a file of a backup.")
            if any(str(parent) in entries for parent in PurePosixPath(name).parents):
                raise self.damaged(f"{name!r} has a file as its folder.")
        if missing := files.keys() - entries.keys():
            raise self.damaged(f"{min(missing)} is missing.")
        if unlisted := entries.keys() - files.keys():
            raise self.damaged(f"{min(unlisted)!r} is not in its manifest.")
        for name, expected in files.items():
            if entries[name].size != expected.bytes:
                raise self.damaged(f"The size of {name!r} differs from its manifest.")
        if self._top_level[0] not in entries:
            raise self.damaged(f"It holds no {self._top_level[0]}.")

    def _is_safe(self, name: str, entry: tarfile.TarInfo) -> bool:
        """Return True if an entry is a regular file with an allowed top-level name and a normalized
        path that file systems accept. Sparse files are rejected: they unpack to more bytes than the
        archive holds."""
        try:
            if tarfile.data_filter(entry, str(settings().root)).name != name:
                return False
        except (tarfile.FilterError, OSError):  # Python 3.13.4 looks the path up
            return False
        parts = name.split("/")
        sizes = [len(os.fsencode(part)) for part in parts]
        return (
            entry.isreg()
            and not entry.issparse()
            and parts[0] in self._top_level
            and not {"", ".", ".."} & {*parts}
            and max(sizes) <= MAX_PART_BYTES
            and sum(sizes) <= MAX_NAME_BYTES
            and len(parts) <= MAX_NAME_PARTS
        )

    def unpack(self, folder: Path, progress: Progress) -> None:
        """Unpack all files into `folder`. `BackupError` if a file differs from its checksum."""
        advance = byte_counter(progress, self.manifest.bytes)
        for name, expected in self.manifest.files.items():
            source = self._archive.extractfile(self._entries[name])
            assert source is not None  # a regular file
            reader, path = HashingReader(source, advance), folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as output:
                shutil.copyfileobj(reader, output, CHUNK_BYTES)
                size = output.tell()
            if (size, reader.digest.hexdigest()) != (expected.bytes, expected.sha256):
                raise self.damaged(f"{name} differs from its checksum.")


def restore_backup(file: Path, progress: Progress = silent) -> Manifest:
    """Restore a backup into the data folder and migrate its database. `BackupError` if the folder
    is not empty, the disk is too full, or the file is not a valid backup (see `open_archive`)."""
    if settings().database_url:
        raise BackupError(
            NOT_RESTORED,
            "SLIMSCOPE_DATABASE_URL names a database outside the data folder.",
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
        check_disk_space(root, manifest.bytes, NOT_RESTORED, DISK_REMEDY)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            archive.unpack(staging, progress)
            _prepare_database(staging / DATABASE, archive)
            for name in reversed(BACKUP_ENTRIES):  # the database last
                if (staging / name).exists():
                    (staging / name).rename(root / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _prepare_database(database: Path, archive: ArchiveReader) -> None:
    """Migrate the unpacked database, interrupt its live runs, and remove the values of the original
    machine. `BackupError` if the database is damaged, `ConflictError` if its schema is unknown."""
    try:
        if not has_only_tables(database):
            raise archive.damaged("Its database holds more than tables.")
        with opened(database) as engine, engine.begin() as connection:
            run_migrations(connection)
            missing = Table.metadata.tables.keys() - {*inspect(connection).get_table_names()}
        if missing:
            raise archive.damaged(f"Its database has no table {min(missing)}.")
        interrupt_live_runs(database)  # only a backup made by hand has live runs
        with opened(database) as engine, Session(engine) as session, session.begin():
            # Variables of the original machine, such as plugins and folders, may be malicious or
            # wrong here. Runs get the variables of this machine instead.
            for job in session.scalars(select(Job)):
                job.environment = without_machine_fields(job.environment)
            # The author of the archive may know a key that it contains.
            valid = ApiKey.revoked_at.is_(None)
            session.execute(update(ApiKey).where(valid).values(revoked_at=now_ms()))
    except (sqlite3.Error, SQLAlchemyError) as error:
        why = getattr(error, "orig", None) or error  # leaves out the SQL statement
        raise archive.damaged(f"Its database cannot be read: {why}.") from error
