"""Disk space of runs, and deletion of runs and checkpoints.

The deletion of a run can be undone for a day. A deleted run is hidden at once; its files, figures
and statistics are purged a day later, or on a host's request. Its row and history stay, so that its
number is never used again.

Checkpoints of ended runs are deleted on a host's request, and after `keep_checkpoints_days`;
models, logs and results stay. The table of runs reads `jobs.disk_bytes`, which is written once
after the end of a run.
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
DELETED_CHECKPOINTS = ".freed"  # name of a checkpoint folder during its deletion
CHECKPOINTS, OTHER = "checkpoints", "other files"


def folder_bytes(path: Path) -> int:
    """Size in bytes of all files below a folder, or of one file; links are not followed.

    Files that vanish meanwhile count as empty."""
    if not path.is_dir() or path.is_symlink():
        return _bytes(path)
    files = (f"{parent}{os.sep}{name}" for parent, _, names in os.walk(path) for name in names)
    return sum(map(_bytes, files))


def _bytes(path: str | Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def disk_use(run: str) -> dict[str, int]:
    """Disk space of a run in bytes by part: checkpoints, logs, each saved folder (such as "model")
    and other files. Empty parts are omitted."""
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
    """Return True if a run has checkpoints from which it could resume."""
    try:
        return any(work_folder(run).iterdir())
    except OSError:
        return False


def orphaned_folders() -> list[Path]:
    """Artifact folders without a run in the database.

    Runs that were added after the backup of a restored database leave such folders."""
    runs = queries.all_run_names()
    try:
        entries = sorted(settings().artifacts.iterdir())
    except OSError:
        return []
    return [entry for entry in entries if entry.is_dir() and entry.name not in runs]


def data_folder_use() -> Mapping[str, int]:
    """Disk space of the data folder and the cache in bytes, by use."""
    current = settings()
    engine = engine_for(current.url)
    return {
        "runs": folder_bytes(current.artifacts),
        "database": dialect_of(engine).bytes(engine),
        "copies of the database": folder_bytes(copies_folder()),
        "models of your own": folder_bytes(current.root / "models"),
        "cache": folder_bytes(current.cache_dir),
    }


def free_space(run: str | int, actor: Actor) -> int:
    """Delete the checkpoints of an ended run; return the number of freed bytes.

    Raises:
        ConflictError: the run has not ended, or has no checkpoints.
    """
    require_host(actor, "free space")
    job = queries.job(run)
    freed_bytes = _free(job.id, actor.name)
    if freed_bytes is None:
        has_ended = job.state in TERMINAL
        raise ConflictError(
            f"{job.run} has nothing to free.",
            "It has no checkpoints." if has_ended else f"It is {job.state}.",
            "" if has_ended else "Cancel it first, or wait until it has ended.",
        )
    return freed_bytes


def free_expired() -> None:
    """Delete expired checkpoints of failed, cancelled and lost runs, and finish deletions that a
    killed process has begun."""
    for leftover in settings().artifacts.glob(f"*/{DELETED_CHECKPOINTS}"):
        delete_folder(leftover)
    if days := settings().keep_checkpoints_days:
        for job in queries.resumable_before(now_ms() - int(days * DAY_MS)):
            if has_checkpoints(job.run):
                _free(job.id, SUPERVISOR_ACTOR, f" after {days:g} days")


def _free(job_id: int, actor: str, reason: str = "") -> int | None:
    """Delete checkpoints; None if the run has none or has not ended.

    The folder is renamed inside the transaction, so that a run that resumes does not use it."""
    with writing(durable=True) as session:
        (job,) = locked(session, Job, [job_id])
        if job.state not in TERMINAL or not has_checkpoints(job.run):
            return None
        use = disk_use(job.run)
        renamed = work_folder(job.run).with_name(DELETED_CHECKPOINTS)
        delete_folder(renamed)
        work_folder(job.run).rename(renamed)
        freed_bytes = use.pop(CHECKPOINTS, 0)
        job.disk_bytes = sum(use.values())
        effect = "; resuming starts from the beginning" if job.state in RESUMABLE else ""
        note(
            session,
            job.id,
            "checkpoints deleted",
            actor,
            f"{readable_bytes(freed_bytes)} freed{reason}{effect}",
        )
    delete_folder(renamed)
    remove_stored(work_folder(job.run))
    return freed_bytes


def remove(runs: Iterable[str | int], actor: Actor) -> list[Job]:
    """Delete ended runs, all or none; return the runs that were not deleted before.

    Raises:
        ConflictError: a run has not ended, or an active run uses it.
    """
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
            values = (part for value in active.config.values() for part in str(value).split(","))
            if used := names & {value.strip() for value in values}:
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
    """Restore deleted runs, all or none; return the runs that had been deleted.

    Raises:
        ConflictError: a run was purged.
    """
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
    """Delete the files and figures of deleted runs permanently; return the freed bytes."""
    require_host(actor, "free space")
    jobs = [queries.job(run) for run in runs]
    return sum(_purge(job.id, actor.name) for job in jobs if job.removed_at is not None)


def forget(runs: Iterable[str | int], actor: Actor) -> None:
    """Delete the rows of purged examples, so that they can be added again."""
    require_host(actor, "restore examples")
    ids = [queries.job(run).id for run in runs]
    with writing(durable=True) as session:
        session.execute(delete(Job).where(Job.id.in_(ids), Job.id < 0, Job.purged))


def purge_expired() -> None:
    """Purge runs that were deleted more than a day ago."""
    for job in queries.removed_before(now_ms() - DAY_MS):
        _purge(job.id, SUPERVISOR_ACTOR)


def _purge(job_id: int, actor: str) -> int:
    """Purge a run; return the freed bytes.

    The folder is deleted first, so that a kill meanwhile leaves the run to the next purge."""
    folder = run_folder(queries.job(job_id).run)
    freed_bytes = folder_bytes(folder) if folder.exists() else 0
    delete_folder(folder)
    remove_stored(folder)
    with writing(durable=True) as session:
        (job,) = locked(session, Job, [job_id])
        for table in {*TABLES_OF_A_RUN.values()} - {Attempt, Event}:  # the history stays
            session.execute(delete(table).where(table.__table__.c.job_id == job_id))
        job.disk_bytes, job.purged = 0, True
        note(session, job_id, "purged", actor, f"{readable_bytes(freed_bytes)} freed")
    return freed_bytes


def archive(runs: Iterable[str | int], actor: Actor, *, back: bool = False) -> list[Job]:
    """Archive runs, which hides them from the usual lists, or (`back`) undo it; return the changed
    runs."""
    require_host(actor, "archive a run")
    ids = [queries.job(run).id for run in runs]
    with writing() as session:
        changed = [job for job in locked(session, Job, ids) if (job.archived_at is None) != back]
        for job in changed:
            job.archived_at = None if back else now_ms()
            note(session, job.id, "taken out of the archive" if back else "archived", actor.name)
    return changed
