"""Buttons of operations, and of changes of the view: which there are for a run, its sweep or its
pipeline, or for many runs, and what pressing one does. The rules are those of the queue's
service."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.actor import Actor
from backend.queue.removal import has_checkpoints
from backend.queue.scheduling import connected
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.benchmark import kind as benchmark
from jobs.dlqat import kind as dlqat
from jobs.fields import drafters
from jobs.fields.models import has_saved
from jobs.operations.changes import is_resumable
from jobs.operations.registry import OPERATIONS, Button, Operation
from jobs.wording import as_text, run_names
from ui.format import href, size
from ui.frame import current_user
from ui.gradio_patches import event_data
from ui.runs.view import MAX_PINS, TableResult
from ui.templates import fragments
from ui.widgets.html import show_error, show_success

HTML = fragments("runs/runs.html")
MIN_COMPARED, MAX_COMPARED = 2, 6  # runs side by side


@dataclass(frozen=True)
class Action:
    """A button for one run or for several."""

    name: str
    text: str
    question: str = ""  # to be confirmed first
    forbidden: str = ""  # why the user may not do it
    limit: str = ""  # why it does not fit the selected runs
    address: str = ""  # of the link it is
    view: Mapping[str, str] | None = None  # what it writes into the address
    prompt: str = ""  # the text it asks for
    initial: str = ""  # what that holds at first


@lru_cache
def _buttons() -> dict[str, tuple[Operation, Button]]:
    return {
        button.name: (operation, button)
        for operation in OPERATIONS.values()
        for button in operation.buttons
    }


def offered(jobs: Sequence[Job], user: Actor, *groups: str) -> list[Action]:
    """The buttons that fit some of these runs; those the user may not press have the reason."""
    found = []
    for operation, button in _buttons().values():
        if button.group not in groups or (len(jobs) > 1 and not button.bulk):
            continue
        if fitting := [job for job in jobs if button.fits(job)]:
            action = Action(
                button.name,
                button.text if len(jobs) == 1 else button.text.replace(" run", " runs"),
                button.question(fitting),
                operation.forbidden(user, fitting),
                prompt=button.prompt.format(runs=run_names([job.run for job in fitting])),
                initial=button.initial(fitting),
            )
            found.append(action)
    return found


def carry_out(name: str, jobs: Sequence[Job], text: str, user: Actor) -> str:
    """Does what a button says to those of the runs that fit, and says what was done.

    Raises:
        SlimscopeError: it is not allowed, or not possible.
    """
    operation, button = _buttons().get(name, (None, None))
    if not operation or not button or (len(jobs) != 1 and not button.bulk):
        raise NotFoundError(f"There is no action {name[:20]!r}.")
    runs = [job.run for job in jobs if button.fits(job)] or [job.run for job in jobs]
    values = {**button.values, **({button.parameter: text} if button.parameter else {})}
    about = {"runs": runs} if "runs" in operation.parameters else {"run": runs[0]}
    answer = operation.call_all(user, **about, **values)
    if name in MESSAGES:
        return MESSAGES[name](answer)
    return (operation.as_text or as_text)(answer)


def _reproduced(run: Mapping[str, Any]) -> str:
    return HTML.reproduction_queued(queries.job(run["id"]), queries.job(run["parent"]).run)


def _deleted(records: Sequence[Mapping[str, Any]]) -> str:
    freed = size(sum(run["disk_bytes"] for run in records))
    return HTML.deleted(run_names([run["id"] for run in records]), freed)


MESSAGES: Mapping[str, Callable[[Any], str]] = {  # with a link
    "retry": _reproduced,
    "reproduce": _reproduced,
    "delete": _deleted,
}


def bulk_actions(table: TableResult, user: Actor) -> list[Action]:
    jobs = [row.job for row in table.selected]
    if not jobs:
        return []
    pins = dict.fromkeys([*table.query.pins, *(job.run for job in jobs)])
    pin = Action("pin", "Pin", view={"pins": ",".join(pins), "pick": ""})
    if len(pins) > MAX_PINS:
        pin = Action("pin", "Pin", limit=f"At most {MAX_PINS} runs can be pinned")
    # the selected runs and the baseline
    compared = [job.run for job in jobs]
    base = table.base.job.run if table.base else ""
    if base and base not in compared:
        compared.insert(0, base)
    address = href("compare", ids=",".join(compared), base=base)
    compare = Action("compare", f"Compare {len(compared)}", address=address)
    if not MIN_COMPARED <= len(compared) <= MAX_COMPARED:
        limit = f"{MIN_COMPARED} to {MAX_COMPARED} runs can be compared"
        compare = Action("compare", "Compare", limit=limit)
    baseline = Action("base", "Set as baseline", view={"base": jobs[0].run, "pick": ""})
    return [
        compare,
        *([baseline] if len(jobs) == 1 else []),
        pin,
        *(each for each in offered(jobs, user, "queue", "order") if each.name != "next"),
        Action("clear", "Clear", view={"pick": ""}),
    ]


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
