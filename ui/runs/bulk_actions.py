"""Actions on several runs at once: which buttons there are, and carrying them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from backend.errors import ConfigError, NotFoundError
from backend.queue import labels, roles, service, supervisor
from backend.queue.roles import Actor
from backend.store.states import LIVE, RESUMABLE, State
from backend.store.tables import Job
from ui.format import href
from ui.format import runs as runs_text
from ui.runs.view import MAX_PINS, Address, TableResult

FEWEST, MOST = 2, 6  # runs side by side


@dataclass(frozen=True)
class BulkAction:
    """One button of the toolbar.

    Attributes:
        address: the link it is.
        view: what it writes into the address.
        question: to be confirmed first.
        prompt, initial: the text it asks for, and what that holds at first.
        forbidden: why the user may not do it.
        limit: why it does not fit the selected runs.
    """

    name: str
    text: str
    address: str = ""
    view: Address | None = None
    question: str = ""
    prompt: str = ""
    initial: str = ""
    forbidden: str = ""
    limit: str = ""


def bulk_actions(table: TableResult, user: Actor) -> list[BulkAction]:
    """What can be done to the selected runs."""
    jobs = [row.job for row in table.selected]
    if not jobs:
        return []
    return [
        _compare(table),
        *_baseline(jobs),
        _pin(table),
        *_labels(jobs, roles.may_not_change(user)),
        *_cancel(jobs, user),
        *_resume(jobs, roles.may_not_change(user)),
        BulkAction("clear", "Clear", view={"pick": ""}),
    ]


def _compare(table: TableResult) -> BulkAction:
    """Leads to the comparison of the selected runs and the baseline."""
    runs = [row.job.run for row in table.selected]
    base = table.base.job.run if table.base else ""
    if base and base not in runs:
        runs.insert(0, base)
    if not FEWEST <= len(runs) <= MOST:
        return BulkAction("compare", "Compare", limit=f"{FEWEST} to {MOST} runs can be compared")
    address = href("compare", ids=",".join(runs), base=base)
    return BulkAction("compare", f"Compare {len(runs)}", address=address)


def _baseline(jobs: Sequence[Job]) -> list[BulkAction]:
    if len(jobs) != 1:
        return []
    return [BulkAction("base", "Set as baseline", view={"base": jobs[0].run, "pick": ""})]


def _pin(table: TableResult) -> BulkAction:
    pins = dict.fromkeys([*table.query.pins, *(row.job.run for row in table.selected)])
    if len(pins) > MAX_PINS:
        return BulkAction("pin", "Pin", limit=f"At most {MAX_PINS} runs can be pinned")
    return BulkAction("pin", "Pin", view={"pins": ",".join(pins), "pick": ""})


def _labels(jobs: Sequence[Job], forbidden: str) -> list[BulkAction]:
    """Tags and, of a single run, its note."""
    runs, tags = run_count(jobs), sorted({tag for job in jobs for tag in job.tags or ()})
    actions = [BulkAction("tag", "Tag", prompt=f"Tags to add to {runs}:", forbidden=forbidden)]
    if tags:
        prompt, initial = f"Tags to remove from {runs}:", " ".join(tags)
        actions.append(
            BulkAction("untag", "Untag", prompt=prompt, initial=initial, forbidden=forbidden)
        )
    if len(jobs) == 1:
        prompt, initial = f"Note on {runs}:", jobs[0].note
        actions.append(
            BulkAction("note", "Note", prompt=prompt, initial=initial, forbidden=forbidden)
        )
    return actions


def _cancel(jobs: Sequence[Job], user: Actor) -> list[BulkAction]:
    active = [job for job in jobs if _cancellable(job)]
    reasons = filter(None, (roles.may_not_cancel(user, job.owner) for job in active))
    question = f"Cancel {run_count(active)}? Finished work is kept."
    action = BulkAction("cancel", "Cancel", question=question, forbidden=next(reasons, ""))
    return [action] if active else []


def _resume(jobs: Sequence[Job], forbidden: str) -> list[BulkAction]:
    ended = [job for job in jobs if job.state in RESUMABLE]
    question = f"Resume {run_count(ended)}?"
    return [BulkAction("resume", "Resume", question=question, forbidden=forbidden)] if ended else []


def _cancellable(job: Job) -> bool:
    """A second cancel would kill the job, which needs a confirmation for each run."""
    return job.state == State.QUEUED or (job.state in LIVE and job.desired == "run")


def run_count(jobs: Sequence[Job]) -> str:
    """The name of a single run, or "3 runs"."""
    return jobs[0].run if len(jobs) == 1 else runs_text(len(jobs))


def run_bulk_action(name: str, jobs: Sequence[Job], text: str, user: Actor) -> str:
    """Carries out an action on the selected runs.

    Returns:
        What was done.

    Raises:
        SlimscopeError: it is not allowed, or not possible.
    """
    if not jobs:
        raise ConfigError("Nothing was done.", "No run is selected.")
    if name not in HANDLERS:
        raise NotFoundError(f"There is no action {name[:20]!r}.")
    return HANDLERS[name](jobs, text, user)


def _run_tag(jobs: Sequence[Job], text: str, user: Actor) -> str:
    tags = labels.tags_in(text)
    labels.tag([job.run for job in jobs], tags, user)
    return f"Added to {run_count(jobs)}: {', '.join(tags)}."


def _run_untag(jobs: Sequence[Job], text: str, user: Actor) -> str:
    tags = labels.tags_in(text)
    labels.untag([job.run for job in jobs], tags, user)
    return f"Removed from {run_count(jobs)}: {', '.join(tags)}."


def _run_note(jobs: Sequence[Job], text: str, user: Actor) -> str:
    labels.annotate(jobs[0].run, text, user)
    return f"The note on {jobs[0].run} was saved."


def _run_cancel(jobs: Sequence[Job], _text: str, user: Actor) -> str:
    active = [job for job in jobs if _cancellable(job)]
    service.cancel_all([job.run for job in active], user)
    supervisor.ensure()
    return f"Cancelling {run_count(active)}."


def _run_resume(jobs: Sequence[Job], _text: str, user: Actor) -> str:
    resumed = service.resume_all([job.run for job in jobs], user)
    supervisor.ensure()
    return f"Queued again: {runs_text(len(resumed))}. Each resumes from its last checkpoint."


HANDLERS: Mapping[str, Callable[[Sequence[Job], str, Actor], str]] = MappingProxyType(
    {
        "tag": _run_tag,
        "untag": _run_untag,
        "note": _run_note,
        "cancel": _run_cancel,
        "resume": _run_resume,
    }
)
