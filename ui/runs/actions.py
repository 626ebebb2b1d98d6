"""Buttons for one run, its sweep or pipeline, or several selected runs.

A button either executes an operation of `jobs.operations`, which checks the user's permission, or
changes the view."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.actor import Actor
from backend.queue.removal import has_checkpoints
from backend.queue.scheduling import pipeline_jobs
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job, run_name
from jobs.benchmark import kind as benchmark
from jobs.dlqat import kind as dlqat
from jobs.fields import drafters
from jobs.fields.models import has_saved, original_model, parameters_of
from jobs.operations.changes import is_resumable
from jobs.operations.registry import OPERATIONS, Button, Operation
from jobs.profile import kind as profile
from jobs.wording import as_text, run_names
from ui.format import href, size
from ui.frame import current_user
from ui.gradio_patches import event_data
from ui.runs.view import MAX_PINS, TableResult
from ui.runs.weights import runs_with_groups
from ui.templates import fragments
from ui.widgets.html import show_error, show_success

HTML = fragments("runs/runs.html")
MIN_COMPARED, MAX_COMPARED = 2, 6  # runs in one comparison


@dataclass(frozen=True)
class Action:
    """A button for one run or for several.

    Attributes:
        name: identifier that the browser sends back.
        text: label of the button.
        question: confirmation question; empty for none.
        forbidden: reason why the user lacks permission; empty if allowed.
        limit: reason why the action is disabled for this number of runs; empty if it is enabled.
        address: target of a link; empty if the button is not a link.
        view: URL parameters to set, if the button changes the view.
        prompt: label of the text input; empty for none.
        initial: initial value of the text input.
    """

    name: str
    text: str
    question: str = ""
    forbidden: str = ""
    limit: str = ""
    address: str = ""
    view: Mapping[str, str] | None = None
    prompt: str = ""
    initial: str = ""


@lru_cache
def _buttons() -> dict[str, tuple[Operation, Button]]:
    return {
        button.name: (operation, button)
        for operation in OPERATIONS.values()
        for button in operation.buttons
    }


def available_actions(jobs: Sequence[Job], user: Actor, *groups: str) -> list[Action]:
    """Return the actions of button groups that apply to at least one run.

    Actions that the user may not execute are included, with the reason in `forbidden`."""
    actions = []
    for operation, button in _buttons().values():
        if button.group not in groups or (len(jobs) > 1 and not button.bulk):
            continue
        if applicable := [job for job in jobs if button.applies_to(job)]:
            action = Action(
                button.name,
                button.text if len(jobs) == 1 else button.text.replace(" run", " runs"),
                button.question(applicable),
                operation.forbidden(user, applicable),
                prompt=button.prompt.format(runs=run_names([job.run for job in applicable])),
                initial=button.initial(applicable),
            )
            actions.append(action)
    return actions


def carry_out(name: str, jobs: Sequence[Job], text: str, user: Actor) -> str:
    """Execute an action on the runs to which it applies; return the message for the user.

    Args:
        text: text typed by the user, for an action with a prompt.

    Raises:
        SlimscopeError: the action does not exist, is not allowed, or is not possible.
    """
    operation, button = _buttons().get(name, (None, None))
    if not operation or not button or (len(jobs) != 1 and not button.bulk):
        raise NotFoundError(f"There is no action {name[:20]!r}.")
    runs = [job.run for job in jobs if button.applies_to(job)] or [job.run for job in jobs]
    values = {**button.values, **({button.parameter: text} if button.parameter else {})}
    target = {"runs": runs} if "runs" in operation.parameters else {"run": runs[0]}
    result = operation.call_all(user, **target, **values)
    if name in MESSAGES:
        return MESSAGES[name](result)
    return (operation.as_text or as_text)(result)


def _reproduction_message(run: Mapping[str, Any]) -> str:
    return HTML.reproduction_queued(queries.job(run["id"]), queries.job(run["parent"]).run)


def _deletion_message(records: Sequence[Mapping[str, Any]]) -> str:
    freed = size(sum(run["disk_bytes"] for run in records))
    return HTML.deleted(run_names([run["id"] for run in records]), freed)


MESSAGES: Mapping[str, Callable[[Any], str]] = {  # actions whose message contains a link
    "retry": _reproduction_message,
    "reproduce": _reproduction_message,
    "delete": _deletion_message,
}


def bulk_actions(table: TableResult, user: Actor) -> list[Action]:
    """Return the actions on the selected rows of the runs table; empty without a selection."""
    jobs = [row.job for row in table.selected]
    if not jobs:
        return []
    pins = dict.fromkeys([*table.query.pins, *(job.run for job in jobs)])
    pin = Action("pin", "Pin", view={"pins": ",".join(pins), "pick": ""})
    if len(pins) > MAX_PINS:
        pin = Action("pin", "Pin", limit=f"At most {MAX_PINS} runs can be pinned")
    compared = [job.run for job in jobs]  # the baseline takes part in the comparison
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
        *(
            action
            for action in available_actions(jobs, user, "queue", "order")
            if action.name != "next"
        ),
        Action("clear", "Clear", view={"pick": ""}),
    ]


def actions(job: Job, user: Actor, position: int | None = None) -> list[Action]:
    """Return the queue actions that apply to a job in its current state.

    "Run next" is included only if `position`, the place in the queue counted from 1, is above 1."""
    applicable = available_actions([job], user, "queue")
    return [action for action in applicable if action.name != "next" or (position or 0) > 1]


def buttons(job: Job, user: Actor, position: int | None = None) -> Markup:
    """Render the buttons of `actions`. Forbidden ones are disabled and show the reason."""
    return HTML.action_buttons(actions(job, user, position), job.run)


def group_buttons(job: Job, user: Actor, group: str) -> Markup:
    """Render the buttons of one group that apply to a job."""
    return HTML.action_buttons(available_actions([job], user, group), job.run)


def restarts_from_scratch(job: Job) -> bool:
    """Return True if resuming the run would start over, because it has no checkpoint."""
    return is_resumable(job) and job.attempts_made > 0 and not has_checkpoints(job.run)


def clone_link(job: Job) -> Markup:
    """Render a link that opens the *New run* form with the config of a run."""
    address = href("new-run", kind=job.kind, **{"from": job.run})
    return HTML.links([(address, "Clone to a new run")])


def sweep_link(job: Job) -> Markup:
    """Render a link to the sweep of a run; empty if the run is not part of a sweep."""
    first = run_name(job.kind, job.sweep) if job.sweep else ""
    address = href("runs", q=f"sweep={first}", open=first)
    return HTML.links([(address, "See its sweep")] if first else [])


def next_links(job: Job) -> Markup:
    """Render links to the next steps after a run: inspect its data, use its saved model."""
    if job.removed_at:
        return Markup()
    succeeded, base = job.state == State.SUCCEEDED, str(job.config.get("model", ""))
    mark = queries.weights_mark(job.run)
    source = original_model(base)
    can_generate = any(has_saved(job, part) for part in ("model", drafters.DRAFTER_FOLDER))
    # only then, as it reads the source's files
    sides = f"{source},{job.run}" if can_generate and parameters_of(source) else job.run
    candidates = [
        (
            succeeded and has_saved(job, drafters.DRAFTER_FOLDER),
            href("new-run", kind=benchmark.NAME, model=base, drafters=job.run),
            "Measure its speed",
        ),
        (succeeded and can_generate, href("playground", sides=sides), "Generate with it"),
        (
            succeeded and job.kind == profile.NAME,
            href("workbench", model=base),
            "Open the Workbench",
        ),
        (
            job.kind == dlqat.NAME and job.run in runs_with_groups(),
            href("weights", run=job.run, view="groups"),
            "See its groups",
        ),
        (mark is not None and mark[1] > 0, href("weights", run=job.run), "See its weights"),
    ]
    return HTML.links([(address, text) for applies, address, text in candidates if applies])


def act(event: gr.EventData, request: gr.Request) -> Any:
    """Handle a click on a button of an `HtmlPanel`; return a notice of success or failure."""
    data = event_data(event)
    try:
        name, run, text = (str(data.get(key) or "") for key in ("do", "run", "text"))
        message = run_action(name, run, current_user(request), text)
    except SlimscopeError as error:
        return show_error(error)
    return show_success(message)


def run_action(name: str, run: str, user: Actor, text: str = "") -> str:
    """Execute an action on a run, its sweep ("cancel-sweep") or its pipeline ("cancel-pipeline");
    return the message for the user.

    Raises:
        SlimscopeError: the action is not allowed, or not possible.
    """
    action, _, scope = name.partition("-")
    if action in ("cancel", "resume") and scope == "sweep":
        return carry_out(action, queries.sweep(run), text, user)
    if action == "cancel" and scope == "pipeline":
        return carry_out(action, pipeline_jobs(queries.job(run).id), text, user)
    return carry_out(name, [queries.job(run)], text, user)


def pipeline_button(jobs: Sequence[Job], user: Actor) -> Markup:
    """Render a button that cancels all unfinished runs of a pipeline; empty if all have ended."""
    cancel = [
        replace(action, name="cancel-pipeline", text="Cancel all")
        for action in available_actions(jobs, user, "queue")
        if action.name == "cancel"
    ]
    return HTML.action_buttons(cancel, jobs[0].run if jobs else "")
