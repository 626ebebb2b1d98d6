"""Actions on one run or sweep: which buttons there are, and carrying them out. The rules are those
of the queue's service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from backend.queue import permissions
from backend.queue.actor import Actor
from backend.queue.artifacts.disk import CHECKPOINTS, has_checkpoints
from backend.queue.dependencies import connected
from backend.store import queries
from backend.store.states import ACTIVE, LIVE, RESUMABLE, TERMINAL, State
from backend.store.tables import Job
from jobs import operations
from jobs.benchmark import config as benchmark
from jobs.dlqat import config as dlqat
from jobs.fields import drafters
from jobs.fields.saved_models import has_saved
from jobs.generate import config as generate
from ui.format import href, runs, size
from ui.frame import current_user
from ui.gradio_patches import event_data
from ui.runs.actions.action import Action
from ui.runs.actions.keeping import KEEPING, keep, keeping_actions
from ui.templates import fragments
from ui.widgets.notice import show_error, show_success

HTML = fragments("runs/runs.html")


def actions(job: Job, place: int | None = None) -> list[Action]:
    """What fits the job's state; moving it only where its place in the queue is known."""
    if job.removed_at:
        return []
    if job.state == State.QUEUED:
        first = [Action("next", "Run next")] if place and place > 1 else []
        return [*first, Action("cancel", "Cancel run", f"Remove {job.run} from the queue?")]
    if job.state in LIVE and job.desired == "run":
        kept = "It stops at the next safe point and keeps finished work."
        return [Action("cancel", "Cancel run", f"Cancel {job.run}? {kept}")]
    if job.state in LIVE and job.desired == "stop":
        lost = "Work since its last checkpoint is lost."
        return [Action("kill", "Kill now", f"Kill {job.run} now? {lost}")]
    if job.state in LIVE:
        return []
    if job.state in RESUMABLE:
        return [Action("resume", "Resume"), Action("retry", "Retry")]
    return [Action("retry", "Reproduce")]


def buttons(job: Job, user: Actor, place: int | None = None) -> Markup:
    """The buttons that fit; those the user may not press are disabled, with the reason."""
    fitting = [replace(a, forbidden=_forbidden(a.name, job, user)) for a in actions(job, place)]
    return HTML.action_buttons(fitting, job.run)


def keeping_buttons(job: Job, user: Actor) -> Markup:
    """The buttons that keep the list of runs in order."""
    return HTML.action_buttons(keeping_actions([job], user), job.run)


def free_button(job: Job, use: Mapping[str, int], user: Actor) -> Markup:
    """Deletes the checkpoints of a run that has ended; empty where there are none.

    Args:
        use: its disk space, by `disk_use`.
    """
    if job.state not in TERMINAL or CHECKPOINTS not in use:
        return Markup()
    again = " Resuming it then starts from the beginning." if job.state in RESUMABLE else ""
    question = f"Delete the checkpoints of {job.run} ({size(use[CHECKPOINTS])})?{again}"
    action = Action("free", "Free space", question, permissions.may_not_change(user))
    return HTML.action_buttons([action], job.run)


def starts_anew(job: Job) -> bool:
    """Whether a run that worked before could be resumed only from the beginning."""
    return job.state in RESUMABLE and job.attempts_made > 0 and not has_checkpoints(job.run)


def _forbidden(action: str, job: Job, user: Actor) -> str:
    """Why an action would be refused; "" where it is allowed."""
    if action == "retry":
        return permissions.may_not_add(user)
    if action in ("resume", "next"):
        return permissions.may_not_change(user)
    return permissions.may_not_cancel(user, job.owner)


def clone_link(job: Job) -> Markup:
    """Opens the form with this run's config."""
    address = href("new", kind=job.kind, **{"from": job.run})
    return HTML.links([(address, "Clone to a new run")])


def sweep_link(job: Job) -> Markup:
    """Opens the sweep the run is part of; empty for a run that was queued alone."""
    return HTML.links([(href("sweep", id=job.run), "See its sweep")] if job.sweep else [])


def next_links(job: Job) -> Markup:
    """Next steps with a run: inspect what it stored, generate with what it saved."""
    if job.removed_at:
        return Markup()
    ended, base = job.state == State.SUCCEEDED, job.config.get("model", "")
    mark = queries.weights_mark(job.run)
    try_it = href("playground", sides=job.run)
    offers = [
        (
            ended and has_saved(job, drafters.DRAFTER_FOLDER),
            href("new", kind=benchmark.NAME, model=base, drafters=job.run),
            "Measure its speed",
        ),
        (ended and _decodes(job), try_it, "Generate with it"),
        (job.kind == benchmark.NAME, href("benchmark", run=job.run), "See its charts"),
        (job.kind == generate.NAME, href("playground", run=job.run), "See its answers"),
        (job.kind == dlqat.NAME, href("quantization", run=job.run), "See its groups"),
        (mark is not None and mark[1] > 0, href("weights", run=job.run), "See its weights"),
    ]
    return HTML.links([(address, text) for fits, address, text in offers if fits])


def _decodes(job: Job) -> bool:
    """Whether the model or the drafter that the run saved is there."""
    return any(has_saved(job, what) for what in ("model", drafters.DRAFTER_FOLDER))


def act(event: gr.EventData, request: gr.Request) -> Any:
    """Handles a button of an `HtmlPanel`: the update of a notice, what was done or why not."""
    data = event_data(event)
    try:
        name, run, text = (str(data.get(key) or "") for key in ("do", "run", "text"))
        message = run_action(name, run, current_user(request), text)
    except SlimscopeError as error:
        return show_error(error)
    return show_success(message)


def run_action(name: str, run: str, user: Actor, text: str = "") -> str:
    """Carries out an action and says what was done; raises `SlimscopeError` where it is not allowed
    or not possible."""
    if name in KEEPING:
        return keep(name, [queries.job(run)], text, user)
    match name:
        case "retry":
            message: str = HTML.reproduction_queued(
                queries.job(operations.reproduce_run(run, user)["id"]), run
            )
        case "resume":
            resumed = operations.resume_run(run, user)["id"]
            kept = has_checkpoints(resumed)
            place = "resumes from its last checkpoint" if kept else "starts from the beginning"
            message = f"{resumed} is queued again. It {place}."
        case "next":
            message = f"{operations.run_next(run, user)['id']} is the next to start."
        case "free":
            freed = operations.free_space(run, user)
            message = f"{size(freed['freed_bytes'])} freed."
        case "cancel" if queries.job(run).desired != "run":  # from a page that is out of date
            message = f"{run} is being cancelled already."
        case "cancel" | "kill":
            message = _cancel(run, user)
        case "cancel-sweep":  # those being cancelled already are not killed by this
            active = [job.run for job in queries.sweep(run) if stoppable(job)]
            message = f"Cancelling {runs(len(operations.cancel_runs(active, user)))}."
        case "cancel-pipeline":
            waiting = [job.run for job in connected(queries.job(run).id) if stoppable(job)]
            message = f"Cancelling {runs(len(operations.cancel_runs(waiting, user)))}."
        case "resume-sweep":
            sweep = [job.run for job in queries.sweep(run)]
            message = f"Queued again: {runs(len(operations.resume_runs(sweep, user)))}."
        case _:
            raise NotFoundError(f"There is no action {name[:20]!r}.")
    return message


def stoppable(job: Job) -> bool:
    """Whether a run is active, and not being cancelled already: a second cancel kills it."""
    return job.state in ACTIVE and job.desired == "run"


def pipeline_button(jobs: Sequence[Job], user: Actor) -> Markup:
    """Cancels every run that is linked with a pipeline and has not ended; empty where all have."""
    active = [job for job in jobs if stoppable(job)]
    if not active:
        return Markup()
    question = f"Cancel all {runs(len(active))} on this page? Finished work is kept."
    reasons = filter(None, (permissions.may_not_cancel(user, job.owner) for job in active))
    action = Action("cancel-pipeline", "Cancel all", question, next(reasons, ""))
    return HTML.action_buttons([action], jobs[0].run)


def _cancel(run: str, user: Actor) -> str:
    job = operations.cancel_run(run, user)
    if job["state"] not in LIVE:
        cancelled = job["state"] == State.CANCELLED
        return f"{run} is cancelled." if cancelled else f"{run} has ended already."
    killed = job["desired"] == "kill"
    return f"{run} is being killed." if killed else f"{run} stops at the next safe point."
