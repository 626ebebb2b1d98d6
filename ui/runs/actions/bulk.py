"""Actions on several runs at once: which buttons there are, and carrying them out."""

from __future__ import annotations

from collections.abc import Sequence

from backend.errors import ConfigError, NotFoundError
from backend.queue import roles
from backend.queue.roles import Actor
from backend.store.states import RESUMABLE
from backend.store.tables import Job
from jobs import operations
from ui.format import href
from ui.format import runs as runs_text
from ui.runs.actions.action import Action, run_count
from ui.runs.actions.keeping import KEEPING, keep, keeping_actions
from ui.runs.actions.single import stoppable
from ui.runs.view import MAX_PINS, TableResult

MIN_COMPARED, MAX_COMPARED = 2, 6  # runs side by side


def bulk_actions(table: TableResult, user: Actor) -> list[Action]:
    """What can be done to the selected runs."""
    jobs, forbidden = [row.job for row in table.selected], roles.may_not_change(user)
    if not jobs:
        return []
    baseline = Action("base", "Set as baseline", view={"base": jobs[0].run, "pick": ""})
    return [
        _compare(table),
        *([baseline] if len(jobs) == 1 else []),
        _pin(table),
        *_cancel(jobs, user),
        *_resume(jobs, forbidden),
        *keeping_actions(jobs, user),
        Action("clear", "Clear", view={"pick": ""}),
    ]


def _compare(table: TableResult) -> Action:
    """Leads to the comparison of the selected runs and the baseline."""
    runs = [row.job.run for row in table.selected]
    base = table.base.job.run if table.base else ""
    if base and base not in runs:
        runs.insert(0, base)
    if not MIN_COMPARED <= len(runs) <= MAX_COMPARED:
        return Action(
            "compare", "Compare", limit=f"{MIN_COMPARED} to {MAX_COMPARED} runs can be compared"
        )
    address = href("compare", ids=",".join(runs), base=base)
    return Action("compare", f"Compare {len(runs)}", address=address)


def _pin(table: TableResult) -> Action:
    pins = dict.fromkeys([*table.query.pins, *(row.job.run for row in table.selected)])
    if len(pins) > MAX_PINS:
        return Action("pin", "Pin", limit=f"At most {MAX_PINS} runs can be pinned")
    return Action("pin", "Pin", view={"pins": ",".join(pins), "pick": ""})


def _cancel(jobs: Sequence[Job], user: Actor) -> list[Action]:
    active = [job for job in jobs if stoppable(job)]
    reasons = filter(None, (roles.may_not_cancel(user, job.owner) for job in active))
    question = f"Cancel {run_count(active)}? Finished work is kept."
    action = Action("cancel", "Cancel", question=question, forbidden=next(reasons, ""))
    return [action] if active else []


def _resume(jobs: Sequence[Job], forbidden: str) -> list[Action]:
    ended = [job for job in jobs if job.state in RESUMABLE]
    question = f"Resume {run_count(ended)}?"
    return [Action("resume", "Resume", question=question, forbidden=forbidden)] if ended else []


def run_bulk_action(name: str, jobs: Sequence[Job], text: str, user: Actor) -> str:
    """Carries out an action on the selected runs and says what was done; raises `SlimscopeError`
    where it is not allowed or not possible."""
    if not jobs:
        raise ConfigError("Nothing was done.", "No run is selected.")
    runs = [job.run for job in jobs]
    if name in KEEPING:
        return keep(name, jobs, text, user)
    match name:
        case "cancel":
            active = [job for job in jobs if stoppable(job)]
            operations.cancel_runs([job.run for job in active], user)
            return f"Cancelling {run_count(active)}."
        case "resume":
            resumed = operations.resume_runs(runs, user)
            count = runs_text(len(resumed))
            return f"Queued again: {count}. Each resumes from its last checkpoint, if any."
    raise NotFoundError(f"There is no action {name[:20]!r}.")
