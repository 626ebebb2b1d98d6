"""Keeping runs in order: name, tags, note, archive, deletion with undo; the same buttons for one
run and for several."""

from __future__ import annotations

from collections.abc import Sequence

from backend.queue import labels, permissions
from backend.queue.actor import Actor
from backend.queue.artifacts.disk import disk_use
from backend.store.states import TERMINAL
from backend.store.tables import Job
from jobs import operations
from ui.format import size
from ui.runs.actions.action import Action, run_count
from ui.templates import fragments

HTML = fragments("runs/runs.html")
KEEPING = ("rename", "tag", "untag", "note", "archive", "unarchive", "delete", "restore", "purge")


def keeping_actions(jobs: Sequence[Job], user: Actor) -> list[Action]:
    """What can be done to these runs; of deleted ones only to bring them back, or to purge them."""
    forbidden = permissions.may_not_change(user)
    if any(job.removed_at for job in jobs):
        return _of_deleted(jobs, forbidden)
    if any(job.id < 0 for job in jobs):
        return _of_examples(jobs, forbidden)
    fields = [
        Action(name, text, prompt=prompt, initial=initial, forbidden=forbidden)
        for name, text, prompt, initial in _labels(jobs)
    ]
    return [*fields, *_put_away(jobs, forbidden)]


def _of_examples(jobs: Sequence[Job], forbidden: str) -> list[Action]:
    """Read-only, they are put away together on Home; one archived before can be taken out."""
    if all(job.archived_at for job in jobs):
        return [Action("unarchive", "Take out of the archive", forbidden=forbidden)]
    limit = "Examples are read-only. Home removes them."
    return [Action("delete", "Delete", limit=limit)] if any(job.id > 0 for job in jobs) else []


def _labels(jobs: Sequence[Job]) -> list[tuple[str, str, str, str]]:
    """Name and note of a single run, and tags."""
    runs, tags = run_count(jobs), sorted({tag for job in jobs for tag in job.tags or ()})
    fields = [("tag", "Tag", f"Tags to add to {runs}:", "")]
    if tags:
        fields.append(("untag", "Untag", f"Tags to remove from {runs}:", " ".join(tags)))
    if len(jobs) == 1:
        fields.insert(0, ("rename", "Rename", f"Name of {runs}:", jobs[0].name))
        fields.append(("note", "Note", f"Note on {runs}:", jobs[0].note))
    return fields


def _put_away(jobs: Sequence[Job], forbidden: str) -> list[Action]:
    if not all(job.state in TERMINAL for job in jobs):
        return []
    runs = run_count(jobs)
    bytes_ = sum(job.disk_bytes or 0 for job in jobs)
    freed = f" {size(bytes_)} on disk will be freed in a day; until then it can be undone."
    archived = all(job.archived_at for job in jobs)
    name, text = ("unarchive", "Take out of the archive") if archived else ("archive", "Archive")
    return [
        Action(name, text, forbidden=forbidden),
        Action("delete", "Delete", f"Delete {runs}?{freed}", forbidden),
    ]


def _of_deleted(jobs: Sequence[Job], forbidden: str) -> list[Action]:
    if any(job.purged for job in jobs):
        return []
    runs = run_count(jobs)
    question = f"Delete files and figures of {runs} now? This cannot be undone."
    return [
        Action("restore", "Undo delete", forbidden=forbidden),
        Action("purge", "Free the space now", question, forbidden),
    ]


def keep(name: str, jobs: Sequence[Job], text: str, user: Actor) -> str:
    """Carry out an action of `KEEPING` and say what was done; raises `SlimscopeError` where it is
    not allowed or not possible."""
    runs, count = [job.run for job in jobs], run_count(jobs)
    match name:
        case "rename":
            renamed = operations.rename_run(runs[0], text, user)["name"]
            return f"{runs[0]} is called {renamed} now." if renamed else f"{runs[0]} has no name."
        case "tag":
            labels.tag(runs, tags := labels.tags_in(text), user)
            return f"Added to {count}: {', '.join(tags)}."
        case "untag":
            labels.untag(runs, tags := labels.tags_in(text), user)
            return f"Removed from {count}: {', '.join(tags)}."
        case "note":
            labels.annotate(runs[0], text, user)
            return f"The note on {runs[0]} was saved."
        case "archive" | "unarchive":
            operations.archive_runs(runs, user, back=name == "unarchive")
            return f"{count}: {'archived' if name == 'archive' else 'back in the list'}."
        case "delete":
            operations.delete_runs(runs, user)
            bytes_ = sum(sum(disk_use(run).values()) for run in runs)
            deleted: str = HTML.deleted(count, size(bytes_))
            return deleted
        case "restore":
            operations.restore_runs(runs, user)
            return f"{count} restored."
    return f"{size(operations.purge_runs(runs, user))} freed."
