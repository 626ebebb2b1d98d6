"""Actions on one run, its sweep or its pipeline: the buttons, and what they do. The rules are those
of the queue's service."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import SlimscopeError
from backend.queue.actor import Actor
from backend.queue.dependencies import connected
from backend.queue.removal import has_checkpoints
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.benchmark import kind as benchmark
from jobs.dlqat import config as dlqat
from jobs.fields import drafters
from jobs.fields.models import has_saved
from jobs.operations.changes import is_resumable
from ui.format import href
from ui.frame import current_user
from ui.gradio_patches import event_data
from ui.runs.actions.action import HTML, Action, carry_out, offered
from ui.widgets.notice import show_error, show_success


def actions(job: Job, user: Actor, place: int | None = None) -> list[Action]:
    """What fits the job's state; moving it only where its place in the queue is known."""
    found = offered([job], user, "queue")
    return [each for each in found if each.name != "next" or (place or 0) > 1]


def buttons(job: Job, user: Actor, place: int | None = None) -> Markup:
    """The buttons that fit; those the user may not press are disabled, with the reason."""
    return HTML.action_buttons(actions(job, user, place), job.run)


def group_buttons(job: Job, user: Actor, group: str) -> Markup:
    """The buttons of a group of operations that fit."""
    return HTML.action_buttons(offered([job], user, group), job.run)


def starts_anew(job: Job) -> bool:
    """Whether a run that worked before could be resumed only from the beginning."""
    return is_resumable(job) and job.attempts_made > 0 and not has_checkpoints(job.run)


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
    decodes = any(has_saved(job, what) for what in ("model", drafters.DRAFTER_FOLDER))
    offers = [
        (
            ended and has_saved(job, drafters.DRAFTER_FOLDER),
            href("new", kind=benchmark.NAME, model=base, drafters=job.run),
            "Measure its speed",
        ),
        (ended and decodes, try_it, "Generate with it"),
        (job.kind == benchmark.NAME, href("benchmark", run=job.run), "See its charts"),
        (job.kind == dlqat.NAME, href("quantization", run=job.run), "See its groups"),
        (mark is not None and mark[1] > 0, href("weights", run=job.run), "See its weights"),
    ]
    return HTML.links([(address, text) for fits, address, text in offers if fits])


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
    """Carries out an action on a run, its sweep ("cancel-sweep") or its pipeline, and says what was
    done; raises `SlimscopeError` where it is not allowed or not possible."""
    action, _, scope = name.partition("-")
    if action in ("cancel", "resume") and scope == "sweep":
        return carry_out(action, queries.sweep(run), text, user)
    if action == "cancel" and scope == "pipeline":
        return carry_out(action, connected(queries.job(run).id), text, user)
    return carry_out(name, [queries.job(run)], text, user)


def pipeline_button(jobs: Sequence[Job], user: Actor) -> Markup:
    """Cancels every run that is linked with a pipeline and has not ended; empty where all have."""
    found = [each for each in offered(jobs, user, "queue") if each.name == "cancel"]
    cancel = [replace(each, name="cancel-pipeline", text="Cancel all") for each in found]
    return HTML.action_buttons(cancel, jobs[0].run if jobs else "")
