"""Deleting runs, and undoing it for a day. A deleted run is hidden at once; its files, figures and
statistics are purged a day later, or when a host asks for it. Its row and its history stay, so that
its number is never given to another run."""

from collections.abc import Iterable

from sqlalchemy import delete, select

from backend.errors import ConflictError
from backend.printable import readable_bytes
from backend.queue.actor import Actor
from backend.queue.artifacts.copies import remove_stored
from backend.queue.artifacts.disk import folder_bytes
from backend.queue.folders import delete_folder, run_folder
from backend.queue.lifecycle import ME, note
from backend.queue.permissions import require_host
from backend.store import queries
from backend.store.session import locked, now_ms, writing
from backend.store.states import ACTIVE, TERMINAL
from backend.store.tables import TABLES_OF_A_RUN, Attempt, Event, Job, Vote

UNDO_MS = 86_400_000
HISTORY = (Attempt, Event, Vote)  # what stays of a purged run, beside its row


def remove(runs: Iterable[str | int], actor: Actor) -> list[Job]:
    """Delete runs that have ended, all or none; return those that were not deleted before.
    `ConflictError` if a run has not ended, or a queued or running run uses it."""
    require_host(actor, "delete a run")
    ids = [queries.job(run).id for run in runs]
    with writing(durable=True) as session:
        jobs = locked(session, Job, ids)
        for job in jobs:
            if job.state not in TERMINAL:
                why = f"It is {job.state}."
                raise ConflictError(f"{job.run} was not deleted.", why, "Cancel it first.")
        names = {job.run for job in jobs}
        for active in session.scalars(select(Job).where(Job.state.in_([*ACTIVE]))):
            used = names & {w.strip() for v in active.config.values() for w in str(v).split(",")}
            if used:
                what = f"{min(used)} was not deleted."
                raise ConflictError(what, f"{active.run} uses it.", f"Wait for {active.run}.")
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
                why = "Its files and figures are gone."
                raise ConflictError(f"{job.run} cannot be restored.", why, "Reproduce it.")
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
    for job in queries.removed(before=now_ms() - UNDO_MS):
        _purge(job.id, ME)


def _purge(job_id: int, actor: str) -> int:
    """The folder goes first: a kill in between leaves a run that is still to be purged."""
    folder = run_folder(queries.job(job_id).run)
    freed = folder_bytes(folder) if folder.exists() else 0
    delete_folder(folder)
    remove_stored(folder)
    with writing(durable=True) as session:
        (job,) = locked(session, Job, [job_id])
        for table in {*TABLES_OF_A_RUN.values()} - {*HISTORY}:
            session.execute(delete(table).where(table.__table__.c.job_id == job_id))
        job.disk_bytes, job.purged = 0, True
        note(session, job_id, "purged", actor, f"{readable_bytes(freed)} freed")
    return freed


def archive(runs: Iterable[str | int], actor: Actor, *, back: bool = False) -> list[Job]:
    """Take runs out of the usual lists, or put them back; everything about them stays."""
    require_host(actor, "archive a run")
    ids = [queries.job(run).id for run in runs]
    with writing() as session:
        jobs = locked(session, Job, ids)
        changed = [job for job in jobs if (job.archived_at is None) != back]
        for job in changed:
            job.archived_at = None if back else now_ms()
            note(session, job.id, "taken out of the archive" if back else "archived", actor.name)
    return changed
