"""The disk space of runs, by what takes it.

A walk over the files of one run takes milliseconds: the run's page does it at every redraw. The
list of runs reads `jobs.disk_bytes`, written once after a run has ended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from backend.queue.folders import run_folder, work_folder
from backend.settings import settings
from backend.store import queries
from backend.store.copies import copies_folder
from backend.store.dialects.choice import dialect_of
from backend.store.session import engine_for

CHECKPOINTS, LOGS, OTHER = "checkpoints", "logs", "other files"


def folder_bytes(path: Path) -> int:
    """The bytes of all files below a folder, or of one file; links are not followed. Files that
    vanish meanwhile are left out."""
    if not path.is_dir() or path.is_symlink():
        return _bytes(path)
    files = (f"{top}{os.sep}{name}" for top, _, names in os.walk(path) for name in names)
    return sum(map(_bytes, files))


def _bytes(path: str | Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def disk_use(run: str) -> dict[str, int]:
    """Bytes on disk of a run: its checkpoints, its logs, each folder it saved (such as "model") and
    other files. What takes none is left out."""
    use: dict[str, int] = {}
    try:
        entries = sorted(run_folder(run).iterdir())
    except OSError:
        return use
    for entry in entries:
        part = _part(entry)
        use[part] = use.get(part, 0) + folder_bytes(entry)
    return {part: size for part, size in use.items() if size}


def _part(entry: Path) -> str:
    if entry == work_folder(entry.parent.name):
        return CHECKPOINTS
    if re.fullmatch(r"a\d+", entry.name):
        return LOGS
    own = entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")
    return entry.name if own else OTHER


def has_checkpoints(run: str) -> bool:
    """Whether a run has checkpoints from which it could go on."""
    try:
        return any(work_folder(run).iterdir())
    except OSError:
        return False


def orphaned_folders() -> list[Path]:
    """Artefact folders that belong to no run in the database, such as of runs added after the copy
    of the database that was restored."""
    known = queries.all_run_names()
    try:
        entries = sorted(settings().artifacts.iterdir())
    except OSError:
        return []
    return [entry for entry in entries if entry.is_dir() and entry.name not in known]


def data_folder_use() -> Mapping[str, int]:
    """Bytes on disk of the data folder and the cache, by what takes them."""
    here = settings()
    engine = engine_for(here.url)
    return {
        "runs": folder_bytes(here.artifacts),
        "database": dialect_of(engine).bytes(engine),
        "copies of the database": folder_bytes(copies_folder()),
        "models of your own": folder_bytes(here.root / "models"),
        "cache": folder_bytes(here.cache_dir),
    }
