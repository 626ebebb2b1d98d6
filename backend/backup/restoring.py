"""Restoring a backup into an empty data folder.

Every file is checked while it is unpacked into a hidden folder; only when all are whole are they
moved into place, the database last. An interrupted restore leaves no database behind.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from backend.backup.archive import BLOCK, DATABASE, MANIFEST, TOPS, Manifest, Progress, silent
from backend.backup.writing import HashingReader, interrupt_live_runs
from backend.errors import BackupError
from backend.queue.disk import readable_bytes
from backend.settings import settings
from backend.store.migrate import newest_revision, upgrade

STAGING = ".restoring"
MAX_MANIFEST = 2**28  # bytes
NOT_RESTORED = "The backup was not restored."


def restore_backup(file: Path, progress: Progress = silent) -> Manifest:
    """Restore a backup into the data folder and migrate its database.

    Raises:
        BackupError: the data folder is not empty or too small, or the file is damaged, unsafe, of a
            newer version, or no backup.
    """
    root = settings().root
    _check_folder(root)
    staging = root / STAGING
    with _opened(file) as archive:
        entries = _entries(archive)
        manifest = _manifest(archive, entries)
        _check_contents(entries, manifest)
        _check_room(root, manifest.bytes)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            _unpack(archive, manifest, entries, staging, progress)
            for top in reversed(TOPS):  # the database last
                if (staging / top).exists():
                    (staging / top).rename(root / top)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    upgrade()
    interrupt_live_runs(root / DATABASE)  # none, unless the backup was made by hand
    return manifest


def _check_folder(root: Path) -> None:
    if settings().database_url:
        why = "SLIMSCOPE_DATABASE_URL names another database than that of the data folder."
        raise BackupError(NOT_RESTORED, why, "Unset it.")
    root.mkdir(parents=True, exist_ok=True)
    if any(entry.name != STAGING for entry in root.iterdir()):
        do = "Set SLIMSCOPE_DATA_DIR to a new folder."
        raise BackupError(NOT_RESTORED, f"The data folder {root} is not empty.", do)


def _check_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        why = f"It needs {readable_bytes(needed)}; {readable_bytes(free)} are free."
        raise BackupError(NOT_RESTORED, why, "Set SLIMSCOPE_DATA_DIR to a folder on another disk.")


@contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    if not file.is_file():
        raise BackupError(NOT_RESTORED, f"There is no file {file}.")
    try:
        with tarfile.open(file, "r:") as archive:
            yield archive
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(f"It cannot be read: {error}.") from error


def _damaged(why: str) -> BackupError:
    return BackupError(NOT_RESTORED, f"The file is damaged or no backup. {why}", "Use another one.")


def _entries(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    found: dict[str, tarfile.TarInfo] = {}
    for entry in archive:
        if entry.name in found:
            raise _damaged(f"It holds {entry.name} twice.")
        found[entry.name] = entry
    return found


def _manifest(archive: tarfile.TarFile, entries: dict[str, tarfile.TarInfo]) -> Manifest:
    entry = entries.pop(MANIFEST, None)
    source = archive.extractfile(entry) if entry and entry.size <= MAX_MANIFEST else None
    if source is None:
        raise _damaged("It has no manifest.")
    try:
        manifest = Manifest.model_validate_json(source.read())
    except ValidationError as error:
        raise _damaged("Its manifest cannot be read.") from error
    if manifest.schema_revision > newest_revision():
        why = f"It was written by Slimscope {manifest.version}, whose database is newer."
        raise BackupError(NOT_RESTORED, why, "Install that version or a later one.")
    return manifest


def _check_contents(entries: dict[str, tarfile.TarInfo], manifest: Manifest) -> None:
    """Raise `BackupError` unless the archive holds the files of the manifest, and no other entry:
    regular files inside the folders of a backup."""
    for name, entry in entries.items():
        try:
            safe = tarfile.data_filter(entry, str(settings().root)).name == name
        except tarfile.FilterError:
            safe = False
        if not safe or not entry.isreg() or PurePosixPath(name).parts[0] not in TOPS:
            raise _damaged(f"{name!r} is not a file of a backup.")
    if missing := manifest.files.keys() - entries.keys():
        raise _damaged(f"{min(missing)} is missing.")
    if others := entries.keys() - manifest.files.keys():
        raise _damaged(f"{min(others)!r} is not in its manifest.")
    if DATABASE not in entries:
        raise _damaged("It holds no database.")


def _unpack(
    archive: tarfile.TarFile,
    manifest: Manifest,
    entries: dict[str, tarfile.TarInfo],
    staging: Path,
    progress: Progress,
) -> None:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, manifest.bytes)

    for name, expected in manifest.files.items():
        source = archive.extractfile(entries[name])
        assert source is not None  # a regular file
        reader, path = HashingReader(source, advance), staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as output:
            shutil.copyfileobj(reader, output, BLOCK)
            size = output.tell()
        if (size, reader.digest.hexdigest()) != (expected.bytes, expected.sha256):
            raise _damaged(f"{name} differs from its checksum.")
