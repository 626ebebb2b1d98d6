"""Restoring a backup into an empty data folder.

Every file is checked while it is unpacked into a hidden folder; only when all are whole are they
moved into place, the database last. An interrupted restore leaves no database behind.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from backend.backup.archive import DATABASE, TOPS, Manifest, Progress, silent
from backend.backup.reading import open_archive
from backend.backup.writing import check_room, interrupt_live_runs
from backend.errors import BackupError
from backend.settings import settings
from backend.store.migrate import upgrade

STAGING = ".restoring"
NOT_RESTORED = "The backup was not restored."
ELSEWHERE = "Set SLIMSCOPE_DATA_DIR to a folder on another disk."


def restore_backup(file: Path, progress: Progress = silent) -> Manifest:
    """Restore a backup into the data folder and migrate its database.

    Raises:
        BackupError: the data folder is not empty or too small, or the file is damaged, unsafe, of a
            newer version, or no backup.
    """
    root = settings().root
    _check_folder(root)
    staging = root / STAGING
    with open_archive(file, NOT_RESTORED) as archive:
        manifest = archive.manifest
        check_room(root, manifest.bytes, NOT_RESTORED, ELSEWHERE)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            archive.unpack(staging, progress)
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
