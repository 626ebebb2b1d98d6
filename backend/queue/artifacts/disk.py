"""The disk space of runs, and deleting checkpoints of ended ones: when a host asks for it, and when
they are older than `keep_checkpoints_days`. Models, logs and results are never deleted. The list of
runs reads `jobs.disk_bytes`, written once after a run has ended."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from backend.errors import ConflictError
from backend.printable import readable_bytes
from backend.queue.actor import Actor
from backend.queue.artifacts.copies import remove_stored
from backend.queue.folders import delete_folder, run_folder, work_folder
from backend.queue.lifecycle import ME, note
from backend.queue.permissions import require_host
from backend.settings import settings
from backend.store import queries
from backend.store.copies import copies_folder
from backend.store.dialects.choice import dialect_of
from backend.store.session import engine_for, locked, now_ms, writing
from backend.store.states import RESUMABLE, TERMINAL
from backend.store.tables import Job

DAY_MS = 86_400_000
FREED = ".freed"
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
        part = entry.name if entry.is_dir() and not entry.is_symlink() else OTHER
        if entry == work_folder(run):
            part = CHECKPOINTS
        elif re.fullmatch(r"a\d+", entry.name):
            part = LOGS
        elif entry.name.startswith("."):
            part = OTHER
        use[part] = use.get(part, 0) + folder_bytes(entry)
    return {part: size for part, size in use.items() if size}


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


def free_space(run: str | int, actor: Actor) -> int:
    """Delete the checkpoints of a run that has ended; return the bytes that were freed.
    `ConflictError` if it has not ended, or has none."""
    require_host(actor, "free space")
    job = queries.job(run)
    freed = _free(job.id, actor.name)
    if freed is None:
        ended = job.state in TERMINAL
        why = "It has no checkpoints." if ended else f"It is {job.state}."
        do = "" if ended else "Cancel it first, or wait until it has ended."
        raise ConflictError(f"{job.run} has nothing to free.", why, do)
    return freed


def free_expired() -> None:
    """Delete the checkpoints of runs that failed, were cancelled or lost too long ago, and what a
    killed process has left to delete."""
    for leftover in settings().artifacts.glob(f"*/{FREED}"):
        delete_folder(leftover)
    if days := settings().keep_checkpoints_days:
        for job in queries.ended_before(RESUMABLE, now_ms() - int(days * DAY_MS)):
            if has_checkpoints(job.run):
                _free(job.id, ME, f" after {days:g} days")


def _free(job_id: int, actor: str, when: str = "") -> int | None:
    with writing(durable=True) as session:
        (job,) = locked(session, Job, [job_id])
        if job.state not in TERMINAL or not has_checkpoints(job.run):
            return None
        use = disk_use(job.run)
        aside = _set_aside(work_folder(job.run))
        freed = use.pop(CHECKPOINTS, 0)
        job.disk_bytes = sum(use.values())
        again = "; resuming starts from the beginning" if job.state in RESUMABLE else ""
        text = f"{readable_bytes(freed)} freed{when}{again}"
        note(session, job.id, "checkpoints deleted", actor, text)
    delete_folder(aside)
    remove_stored(work_folder(job.run))
    return freed


def _set_aside(work: Path) -> Path:
    aside = work.with_name(FREED)
    delete_folder(aside)
    return work.rename(aside)
