"""Deleting the checkpoints of runs that have ended: when a host asks for it, and when they are
older than `keep_checkpoints_days`. Models, logs and results are never deleted.

Checkpoints are renamed in the transaction that looks at the state, and deleted after it: a run that
is resumed at the same moment either keeps all of them or starts from the beginning.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from backend.errors import ConflictError
from backend.printable import readable_bytes
from backend.queue.artifacts.copies import remove_stored
from backend.queue.disk import CHECKPOINTS, disk_use, has_checkpoints
from backend.queue.folders import delete_folder, work_folder
from backend.queue.lifecycle import ME, note
from backend.queue.roles import Actor, require_host
from backend.settings import settings
from backend.store import queries
from backend.store.session import locked, now_ms, writing
from backend.store.states import RESUMABLE, TERMINAL
from backend.store.tables import Job

DAY_MS = 86_400_000
FREED = ".freed"


def free_space(run: str | int, actor: Actor) -> int:
    """Delete the checkpoints of a run that has ended.

    Returns:
        The bytes that were freed.

    Raises:
        ForbiddenError: the actor is a guest.
        ConflictError: the run has not ended, or has no checkpoints.
    """
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
        _note(session, job, actor, f"{readable_bytes(freed)} freed{when}")
    delete_folder(aside)
    remove_stored(work_folder(job.run))
    return freed


def _set_aside(work: Path) -> Path:
    aside = work.with_name(FREED)
    delete_folder(aside)
    return work.rename(aside)


def _note(session: Session, job: Job, actor: str, text: str) -> None:
    again = "; resuming starts from the beginning" if job.state in RESUMABLE else ""
    note(session, job.id, "checkpoints deleted", actor, text + again)
