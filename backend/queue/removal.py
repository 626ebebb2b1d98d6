"""The disk space of runs, and what frees it.

Deleting runs can be undone for a day. A deleted run is hidden at once; its files, figures and
statistics are purged a day later, or when a host asks for it. Its row and its history stay, so that
its number is never given to another run.

Checkpoints of ended runs are deleted when a host asks for it, and when they are older than
`keep_checkpoints_days`; models, logs and results are not. The list of runs reads `jobs.disk_bytes`,
written once after a run has ended.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlalchemy import delete, select

from backend.errors import ConflictError
from backend.printable import readable_bytes
from backend.queue.actor import Actor
from backend.queue.artifacts import delete_folder, remove_stored, run_folder, work_folder
from backend.queue.lifecycle import SUPERVISOR_ACTOR, note
from backend.queue.permissions import require_host
from backend.settings import settings
from backend.store import queries
from backend.store.copies import copies_folder
from backend.store.dialects import dialect_of
from backend.store.session import engine_for, locked, now_ms, writing
from backend.store.states import ACTIVE, RESUMABLE, TERMINAL
from backend.store.tables import TABLES_OF_A_RUN, Attempt, Event, Job

DAY_MS = 86_400_000
FREED = ".freed"
CHECKPOINTS, OTHER = "checkpoints", "other files"


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
            part = "logs"
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
    """Artifact folders that belong to no run in the database, such as of runs added after the copy
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
        raise ConflictError(
            f"{job.run} has nothing to free.",
            "It has no checkpoints." if ended else f"It is {job.state}.",
            "" if ended else "Cancel it first, or wait until it has ended.",
        )
    return freed


def free_expired() -> None:
    """Delete the checkpoints of runs that failed, were cancelled or lost too long ago, and what a
    killed process has left to delete."""
    for leftover in settings().artifacts.glob(f"*/{FREED}"):
        delete_folder(leftover)
    if days := settings().keep_checkpoints_days:
        for job in queries.resumable_before(now_ms() - int(days * DAY_MS)):
            if has_checkpoints(job.run):
                _free(job.id, SUPERVISOR_ACTOR, f" after {days:g} days")


def _free(job_id: int, actor: str, when: str = "") -> int | None:
    with writing(durable=True) as session:
        (job,) = locked(session, Job, [job_id])
        if job.state not in TERMINAL or not has_checkpoints(job.run):
            return None
        use = disk_use(job.run)
        aside = work_folder(job.run).with_name(FREED)
        delete_folder(aside)
        work_folder(job.run).rename(aside)
        freed = use.pop(CHECKPOINTS, 0)
        job.disk_bytes = sum(use.values())
        again = "; resuming starts from the beginning" if job.state in RESUMABLE else ""
        note(
            session,
            job.id,
            "checkpoints deleted",
            actor,
            f"{readable_bytes(freed)} freed{when}{again}",
        )
    delete_folder(aside)
    remove_stored(work_folder(job.run))
    return freed


def remove(runs: Iterable[str | int], actor: Actor) -> list[Job]:
    """Delete runs that have ended, all or none; return those that were not deleted before.
    `ConflictError` if a run has not ended, or a queued or running run uses it."""
    require_host(actor, "delete a run")
    ids = [queries.job(run).id for run in runs]
    with writing(durable=True) as session:
        jobs = locked(session, Job, ids)
        for job in jobs:
            if job.state not in TERMINAL:
                raise ConflictError(
                    f"{job.run} was not deleted.", f"It is {job.state}.", "Cancel it first."
                )
        names = {job.run for job in jobs}
        for active in session.scalars(select(Job).where(Job.state.in_([*ACTIVE]))):
            used = names & {w.strip() for v in active.config.values() for w in str(v).split(",")}
            if used:
                raise ConflictError(
                    f"{min(used)} was not deleted.",
                    f"{active.run} uses it.",
                    f"Wait for {active.run}.",
                )
        removed = [job for job in jobs if job.removed_at is None]
        for job in removed:
            job.removed_at = now_ms()
            note(session, job.id, "deleted", actor.name)
    return removed


def restore(runs: Iterable[str | int], actor: Actor) -> list[Job]:
    """Undo `remove`; return the runs that had been deleted. `ConflictError` if one was purged."""
    require_host(actor, "restore a run")
    ids = [queries.job(run).id for run in runs]
    with writing(durable=True) as session:
        jobs = locked(session, Job, ids)
        for job in jobs:
            if job.purged:
                raise ConflictError(
                    f"{job.run} cannot be restored.",
                    "Its files and figures are gone.",
                    "Reproduce it.",
                )
        removed = [job for job in jobs if job.removed_at is not None]
        for job in removed:
            job.removed_at = None
            note(session, job.id, "restored", actor.name)
    return removed


def purge(runs: Iterable[str | int], actor: Actor) -> int:
    """Delete the files and figures of deleted runs for good; return the bytes that were freed."""
    require_host(actor, "free space")
    jobs = [queries.job(run) for run in runs]
    return sum(_purge(job.id, actor.name) for job in jobs if job.removed_at is not None)


def forget(runs: Iterable[str | int], actor: Actor) -> None:
    """Delete the rows of purged examples, so that they can be added again."""
    require_host(actor, "restore examples")
    ids = [queries.job(run).id for run in runs]
    with writing(durable=True) as session:
        for job_id in ids:
            session.execute(delete(Job).where(Job.id == job_id, Job.id < 0, Job.purged))


def purge_expired() -> None:
    """Purge what was deleted more than a day ago."""
    for job in queries.removed_before(now_ms() - DAY_MS):
        _purge(job.id, SUPERVISOR_ACTOR)


def _purge(job_id: int, actor: str) -> int:
    """The folder goes first: a kill in between leaves a run that is still to be purged."""
    folder = run_folder(queries.job(job_id).run)
    freed = folder_bytes(folder) if folder.exists() else 0
    delete_folder(folder)
    remove_stored(folder)
    with writing(durable=True) as session:
        (job,) = locked(session, Job, [job_id])
        for table in {*TABLES_OF_A_RUN.values()} - {Attempt, Event}:  # they stay, beside its row
            session.execute(delete(table).where(table.__table__.c.job_id == job_id))
        job.disk_bytes, job.purged = 0, True
        note(session, job_id, "purged", actor, f"{readable_bytes(freed)} freed")
    return freed


def archive(runs: Iterable[str | int], actor: Actor, *, back: bool = False) -> list[Job]:
    """Take runs out of the usual lists, or put them back; everything about them stays."""
    require_host(actor, "archive a run")
    ids = [queries.job(run).id for run in runs]
    with writing() as session:
        changed = [job for job in locked(session, Job, ids) if (job.archived_at is None) != back]
        for job in changed:
            job.archived_at = None if back else now_ms()
            note(session, job.id, "taken out of the archive" if back else "archived", actor.name)
    return changed
