"""Generate: one prompt, answers side by side, shown while they are generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from backend.errors import NotFoundError, SlimscopeError
from backend.queue import labels, roles
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import ACTIVE
from backend.store.tables import Job
from jobs.generate import config as generate
from jobs.generate.config import GenerateJob
from jobs.submit import submit
from ui.frame import SILENT_EVENT, Page, current_user, live, on_load, query, url_sync
from ui.gradio_patches import event_data
from ui.pages.playground import details
from ui.runs.actions.one import run_action
from ui.runs.choices import models, saved, trained_drafters
from ui.runs.results import find_job
from ui.widgets.config_form import ConfigForm, address_values
from ui.widgets.dropdown import Choices
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, show_error, show_html, show_success
from ui.widgets.panel import Outputs, Updates

REFRESH_SECONDS = 0.6  # while texts grow


def build() -> None:
    with gr.Row(elem_classes="playground"):
        with gr.Column(scale=1, min_width=320, elem_classes="card"):
            form, blind, submit_button, message = _form()
        with gr.Column(scale=2, min_width=320):
            board = HtmlPanel(elem_id="playground-board", min_height=240)
    timer = gr.Timer(REFRESH_SECONDS, active=False)

    page = Outputs(board=board, timer=timer)
    show = page.named(draw), blind, page.components
    live(*show)
    timer.tick(*show, **SILENT_EVENT)
    board.view(*show, **LATEST)
    blind.input(*show, **LATEST)
    board.on_action(act, message, show)
    on_load(_fill_form(form, submit_button, message), None, [submit_button, message, *form.inputs])

    run = gr.Textbox(visible=False)
    submitted = submit_button.click(
        _submit(form, run, message),
        form.inputs,
        [run, message, *form.folds.values(), *form.messages],
        show_progress="hidden",
        api_visibility="private",
    )
    url_sync(submitted, run=run).then(*show, **SILENT_EVENT)


def _form() -> tuple[ConfigForm, gr.Checkbox, gr.Button, gr.HTML]:
    """The form, "Blind", the button, and a place for messages."""
    form = ConfigForm(GenerateJob, {"sides": sides}, "playground-")
    blind = gr.Checkbox(
        label="Blind",
        info="Hides model names and shuffles the columns until you have voted.",
        elem_id="playground-blind",
        elem_classes="form-field",
    )
    gr.Checkbox(  # read by the style sheet alone
        label="Show rejected draft tokens",
        info="The first draft token of each step that the base model rejected.",
        elem_id="playground-vain",
        elem_classes="form-field",
    )
    button = gr.Button("Generate", variant="primary", elem_id="playground-ask")
    return form, blind, button, notice("playground-said")


def sides() -> Choices:
    """What can generate: every model, every drafter with its base model, every saved model."""
    known = {name for _, name in models()}
    compressed = [(label, name) for label, name in saved() if name not in known]
    return [*models(), *trained_drafters(), *compressed]


def _fill_form(form: ConfigForm, button: gr.Button, message: gr.HTML) -> Callable[..., Any]:
    """On arrival: today's choices; the config of the run in the address, or the fields named in it
    (`?sides=`); the button disabled for those who may not add runs."""

    def arrive(request: gr.Request) -> dict[Any, Any]:
        job = _generate_run(query(request, "from") or query(request, "run"))
        config = job.config if job else address_values(request, GenerateJob)
        updates = form.arrival(config or None)
        if reason := roles.may_not_add(current_user(request)):
            updates |= {
                button: gr.update(interactive=False),
                message: show_html(details.HTML.may_not(reason)),
            }
        return updates

    return arrive


def _submit(form: ConfigForm, run: gr.Textbox, message: gr.HTML) -> Callable[..., Any]:
    """Queues the run, or shows each error beside its field."""

    def queue(request: gr.Request, *values: Any) -> dict[Any, Any]:
        try:
            job = submit(generate.NAME, form.values(values), current_user(request))
        except SlimscopeError as error:
            return {**form.show_errors(error), message: show_error(error)}
        return {**form.show_errors(None), run: job.run, message: show_html()}

    return queue


def _generate_run(run: str) -> Job | None:
    """The run of that name, if it is of this kind."""
    job = find_job(run)
    return job if job and job.kind == generate.NAME and not job.damaged else None


def draw(blind: bool, request: gr.Request) -> Updates:
    """The answers, the earlier runs, and whether to refresh soon."""
    runs = queries.jobs(kind=generate.NAME, limit=details.MAX_EARLIER)
    earlier = [job for job in runs if not job.damaged]
    job = _generate_run(query(request, "run")) or next(iter(earlier), None)
    if job is None:
        return {"board": details.HTML.nothing(), "timer": gr.update(active=False)}
    place = queries.status().position(job.id)
    html = details.board(job, place, bool(blind), current_user(request), earlier, now_ms())
    return {"board": html, "timer": gr.update(active=job.state in ACTIVE)}


def act(request: gr.Request, event: gr.EventData) -> Any:
    """A vote, or an action that any run has."""
    data = event_data(event)
    action, run = str(data.get("do", "")), str(data.get("run", ""))
    try:
        if action != details.TIE and not action.startswith(details.BETTER):
            return show_success(run_action(action, run, current_user(request)))
        job = _generate_run(run)
        if job is None or details.vote_of(job) is not None or action not in details.vote_tags(job):
            why = "There is already a vote, or no such answer."
            raise NotFoundError("The vote was not saved.", why)
        labels.tag([job.run], [action], current_user(request))
    except SlimscopeError as error:
        return show_error(error)
    return show_html()


PAGE = Page(
    "Playground", "playground", build, order=80, section="Playground", key="p",
    moved_from=("generate",),
)  # fmt: skip
