"""Operations that change runs. Permissions are checked by the services they call."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from backend.errors import ConfigError
from backend.printable import readable_bytes
from backend.queue import labels, permissions, removal, service
from backend.queue.actor import Actor
from backend.queue.removal import CHECKPOINTS, disk_use, has_checkpoints
from backend.store import queries
from backend.store.states import ACTIVE, LIVE, RESUMABLE, TERMINAL, State
from backend.store.tables import Job
from jobs.operations.registry import Button, Record, Run, Runs, operation
from jobs.record import summary
from jobs.wording import count, record_names, run_names

Records = Sequence[Record]


def _names(jobs: Sequence[Job]) -> str:
    return run_names([job.run for job in jobs])


def summaries(runs: Sequence[str]) -> list[Record]:
    """Return the current records of runs."""
    return [summary(queries.job(run)) for run in runs]


# the queue ----------------------------------------------------------------------------------------


@operation(
    "next",
    writes=True,
    action="reorder the queue",
    as_text=lambda run: f"{run['id']} was moved in the queue.",
    buttons=(
        Button(
            "next", "Run next", lambda job: job.state == State.QUEUED, group="queue", bulk=False
        ),
    ),
)
def run_next(
    run: Run,
    actor: Actor,
    after: Annotated[
        str, Field(description="Queued run that it follows. Empty: it goes first.")
    ] = "",
) -> Record:
    """Move a queued run to the front of the queue, or behind another queued run."""
    return summary(service.run_next(run, actor, after or None))


def _cancel_question(jobs: Sequence[Job]) -> str:
    if len(jobs) > 1:
        return f"Cancel {_names(jobs)}? Finished work is kept."
    if jobs[0].state == State.QUEUED:
        return f"Remove {jobs[0].run} from the queue?"
    return f"Cancel {jobs[0].run}? It stops at the next safe point and keeps finished work."


def _cancel_text(records: Records) -> str:
    if len(records) > 1:
        return f"Cancellation requested: {count(len(records))}."
    (run,) = records
    if run["state"] not in LIVE:
        cancelled = run["state"] == State.CANCELLED
        return f"{run['id']} is cancelled." if cancelled else f"{run['id']} has ended already."
    when = "now" if run["desired"] == "kill" else "at the next safe point"
    return f"{run['id']} was asked to stop {when}."  # still true if it has stopped meanwhile


@operation(
    "cancel",
    writes=True,
    access="guest",
    may_not=permissions.may_not_cancel,
    tool="cancel_run",
    as_text=_cancel_text,
    buttons=(
        Button(
            "cancel",
            "Cancel run",
            # not offered twice: a second request kills the run
            lambda job: job.state in ACTIVE and job.desired == "run",
            _cancel_question,
            values={"once": True},
            group="queue",
        ),
        Button(
            "kill",
            "Kill now",
            lambda job: job.state in LIVE and job.desired == "stop",
            group="queue",
            bulk=False,
            question=lambda jobs: (
                f"Kill {jobs[0].run} now? Work since its last checkpoint is lost."
            ),
        ),
    ),
)
def cancel_runs(
    runs: Runs,
    actor: Actor,
    once: Annotated[
        bool, Field(description="Do not kill runs that are already being cancelled.")
    ] = False,
) -> list[Record]:
    """Ask runs to stop at their next safe point. A second request kills them. A finished run cannot
    be cancelled."""
    jobs = [queries.job(run) for run in runs]
    cancelled = [
        job.run for job in jobs if not once or job.desired == "run" or job.state not in LIVE
    ]
    if cancelled or not jobs:
        service.cancel(cancelled, actor)
    return summaries([job.run for job in jobs])


def is_resumable(job: Job) -> bool:
    """Return True if a run failed, was cancelled or lost, and is not deleted."""
    return job.state in RESUMABLE and not job.removed_at


def _resume_text(records: Records) -> str:
    if len(records) != 1:
        resume_note = " Each resumes from its last checkpoint, if any." if records else ""
        return f"Queued again: {count(len(records))}.{resume_note}"
    run = records[0]["id"]
    has_no_checkpoint = not has_checkpoints(run)
    start = "starts from the beginning" if has_no_checkpoint else "resumes from its last checkpoint"
    return f"{run} is queued again. It {start}."


@operation(
    "resume",
    writes=True,
    action="resume a run",
    tool="resume_run",
    as_text=_resume_text,
    buttons=(
        Button(
            "resume",
            "Resume",
            is_resumable,
            group="queue",
            question=lambda jobs: f"Resume {_names(jobs)}?" if len(jobs) > 1 else "",
        ),
    ),
)
def resume_runs(runs: Runs, actor: Actor) -> list[Record]:
    """Queue failed, cancelled or lost runs again. They resume from their last checkpoints."""
    return [summary(job) for job in service.resume(runs, actor)]


def _free_question(jobs: Sequence[Job]) -> str:
    (job,) = jobs
    size = readable_bytes(disk_use(job.run).get(CHECKPOINTS, 0))
    consequence = " Resuming it will start from the beginning." if job.state in RESUMABLE else ""
    return f"Delete the checkpoints of {job.run} ({size})?{consequence}"


@operation(
    "free",
    writes=True,
    action="free space",
    tool="",
    question=_free_question,
    as_text=lambda result: f"{result['id']}: {readable_bytes(result['freed_bytes'])} freed.",
    buttons=(
        Button(
            "free",
            "Free space",
            group="disk",
            bulk=False,
            question=_free_question,
            applies_to=lambda job: job.state in TERMINAL and has_checkpoints(job.run),
        ),
    ),
)
def free_space(run: Run, actor: Actor) -> Record:
    """Delete the checkpoints of a finished run. Resuming it will start from the beginning. Returns
    the number of freed bytes."""
    freed = removal.free_space(run, actor)
    return {"id": queries.job(run).run, "freed_bytes": freed}


# the list of runs ---------------------------------------------------------------------------------


def _is_own(job: Job) -> bool:
    """Return True if a run is neither an example nor deleted."""
    return job.id > 0 and not job.removed_at


Text = Annotated[str | None, Field(description="New text. Empty: remove it.")]
Tags = Annotated[str | None, Field(description="Words of letters, digits and . + - / _")]


@operation(
    "edit",
    writes=True,
    action="edit a run",
    as_text=lambda runs: f"Saved: {record_names(runs)}.",
    buttons=(
        Button(
            "rename",
            "Rename",
            _is_own,
            prompt="Name of {runs}:",
            parameter="name",
            initial=lambda jobs: jobs[0].name,
            bulk=False,
        ),
        Button("tag", "Tag", _is_own, prompt="Tags to add to {runs}:", parameter="tag"),
        Button(
            "untag",
            "Untag",
            lambda job: _is_own(job) and bool(job.tags),
            parameter="untag",
            prompt="Tags to remove from {runs}:",
            initial=lambda jobs: " ".join(sorted({tag for job in jobs for tag in job.tags})),
        ),
        Button(
            "note",
            "Note",
            _is_own,
            prompt="Note on {runs}:",
            parameter="note",
            bulk=False,
            initial=lambda jobs: jobs[0].note,
        ),
    ),
)
def edit_runs(
    runs: Runs,
    actor: Actor,
    name: Text = None,
    note: Text = None,
    tag: Tags = None,
    untag: Tags = None,
) -> list[Record]:
    """Set the name or note of runs, add or remove tags."""
    if name is note is tag is untag is None:
        raise ConfigError(
            "Nothing was changed.",
            "No change is given.",
            "Give a name, a note, or tags to add or remove.",
        )
    added, removed = (labels.tags_in(text) if text is not None else () for text in (tag, untag))
    labels.edit(runs, actor, name=name, text=note, add=added, remove=removed)
    return summaries(runs)


def _archive_text(records: Records) -> str:
    if not records:
        return "Nothing to change."
    archived = queries.job(records[0]["id"]).archived_at
    return f"{'Archived' if archived else 'Back in the list'}: {record_names(records)}."


@operation(
    "archive",
    writes=True,
    action="archive a run",
    buttons=(
        Button(
            "archive",
            "Archive",
            lambda job: _is_own(job) and job.state in TERMINAL and not job.archived_at,
        ),
        Button(
            "unarchive",
            "Unarchive",
            values={"back": True},
            applies_to=lambda job: bool(job.archived_at) and not job.removed_at,
        ),
    ),
    as_text=_archive_text,
)
def archive_runs(
    runs: Runs,
    actor: Actor,
    back: Annotated[bool, Field(description="Move runs out of the archive.")] = False,
) -> list[Record]:
    """Archive runs: lists hide them, and nothing is deleted."""
    return [summary(job) for job in removal.archive(runs, actor, back=back)]


def _delete_question(jobs: Sequence[Job]) -> str:
    size = readable_bytes(sum(job.disk_bytes or 0 for job in jobs))
    freed = f"{size} on disk will be freed in a day. Until then you can undo it."
    return f"Delete {_names(jobs)}? {freed}"


def _delete_text(records: Records) -> str:
    jobs = [queries.job(run["id"]) for run in records]
    if not any(job.removed_at for job in jobs):
        return f"Restored: {record_names(records)}." if jobs else "No deleted run is among them."
    names = " ".join(job.run for job in jobs)
    size = readable_bytes(sum(run["disk_bytes"] for run in records))
    if all(job.purged for job in jobs):
        return f"Deleted: {names}. {size} freed."
    return f"Deleted: {names}. {size} will be freed in a day. Undo: slimscope delete --undo {names}"


@operation(
    "delete",
    writes=True,
    action="delete a run",
    tool="",
    as_text=_delete_text,
    question=_delete_question,
    buttons=(
        Button(
            "delete", "Delete", lambda job: _is_own(job) and job.state in TERMINAL, _delete_question
        ),
        Button(
            "purge",
            "Free the space now",
            lambda job: bool(job.removed_at) and not job.purged,
            lambda jobs: f"Delete files and figures of {_names(jobs)} now? This cannot be undone.",
            values={"now": True},
        ),
        Button(
            "restore",
            "Undo delete",
            lambda job: bool(job.removed_at) and not job.purged,
            values={"undo": True},
        ),
    ),
)
def delete_runs(
    runs: Runs,
    actor: Actor,
    now: Annotated[bool, Field(description="Delete permanently, without a day to undo.")] = False,
    undo: Annotated[bool, Field(description="Restore runs deleted less than a day ago.")] = False,
) -> list[Record]:
    """Delete finished runs. They can be restored for a day; then files and figures are purged."""
    if undo:
        return [summary(job) for job in removal.restore(runs, actor)]
    removal.remove(runs, actor)
    jobs = [queries.job(run) for run in runs]
    records = [summary(job) | {"disk_bytes": sum(disk_use(job.run).values())} for job in jobs]
    if now:
        removal.purge(runs, actor)
    return records
