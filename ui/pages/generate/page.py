"""Generate: one prompt, answers side by side, watched as they come."""

from __future__ import annotations

from collections.abc import Mapping
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
from ui.pages.generate import details
from ui.runs.actions import run_action
from ui.runs.choices import models, saved, trained_drafters
from ui.widgets.config_form import Choice, ConfigForm, address_values
from ui.widgets.html import empty, stack
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, show_error, show_success

LOOK_EVERY = 0.6  # seconds between looks at texts that grow
NOTHING = "Nothing has been asked yet. Write a prompt and choose who answers it."


def build() -> None:
    with gr.Row(elem_classes="generate"):
        with gr.Column(scale=1, min_width=320, elem_classes="card"):
            form = ConfigForm(GenerateJob, {"sides": sides}, "generate-")
            blind = gr.Checkbox(
                label="Blind",
                info="Hides the names, mixes the order, and shows both once you have voted.",
                elem_id="generate-blind",
                elem_classes="form-field",
            )
            gr.Checkbox(  # read by the style sheet alone
                label="Guesses in vain",
                info="Also shows the first guess of each pass that the base did not take.",
                elem_id="generate-vain",
                elem_classes="form-field",
            )
            ask = gr.Button("Generate", variant="primary", elem_id="generate-ask")
            told = notice("generate-said")
        with gr.Column(scale=2, min_width=320):
            board = HtmlPanel(elem_id="generate-board", min_height=240)
    timer = gr.Timer(LOOK_EVERY, active=False)

    shown = [board, timer]
    live(draw, blind, shown)
    timer.tick(draw, blind, shown, **SILENT_EVENT)
    board.view(draw, blind, shown, **LATEST)
    blind.input(draw, blind, shown, **LATEST)
    acted = board.act(act, None, told, show_progress="hidden", api_visibility="private")
    acted.then(draw, blind, shown, **SILENT_EVENT)
    on_load(_arrival(form, ask, told), None, [ask, told, *form.inputs])

    run = gr.Textbox(visible=False)

    def queue(request: gr.Request, *given: Any) -> dict[Any, Any]:
        error: SlimscopeError | None = None
        try:
            job = submit(generate.NAME, form.values(given), current_user(request))
            updates: dict[Any, Any] = {run: job.run, told: gr.update(visible=False)}
        except SlimscopeError as refused:
            error, updates = refused, {told: show_error(refused)}
        return {**form.show_errors(error), **updates}

    outputs = [run, told, form.accordion, *form.messages]
    asked = ask.click(queue, form.inputs, outputs, show_progress="hidden", api_visibility="private")
    url_sync(asked, run=run).then(draw, blind, shown, **SILENT_EVENT)


def sides() -> list[Choice]:
    """Who can answer: every model, every drafter with its base, every run that saved a model."""
    known = {name for _, name in models()}
    kept = [(text, name) for text, name in saved() if name not in known]
    return [*models(), *trained_drafters(), *kept]


def _arrival(form: ConfigForm, ask: gr.Button, told: gr.HTML) -> Any:
    """On arrival: today's choices; the config of the run the address names or, with `?sides=` and
    the like, the fields named; the button off for those who may not."""

    def arrive(request: gr.Request) -> dict[Any, Any]:
        old = _old(query(request, "from") or query(request, "run"))
        updates = form.arrival(old or address_values(request, GenerateJob) or None)
        if reason := roles.may_not_add(current_user(request)):
            words = f'<p class="quiet">{reason} {roles.ASK}</p>'
            updates |= {
                ask: gr.update(interactive=False),
                told: gr.update(value=words, visible=True),
            }
        return updates

    return arrive


def _old(run: str) -> Mapping[str, Any] | None:
    job = _chosen(run)
    return job.config if job else None


def _chosen(run: str) -> Job | None:
    """The run of that name, if it is one of these."""
    try:
        job = queries.job(run) if run else None
    except SlimscopeError:
        return None
    return job if job and job.kind == generate.NAME else None


def draw(blind: bool, request: gr.Request) -> list[Any]:
    """The answers, the gallery, and whether to look again soon."""
    earlier = queries.jobs(kind=generate.NAME, limit=details.GALLERY)
    job = _chosen(query(request, "run")) or next(iter(earlier), None)
    if job is None:
        return [empty(NOTHING), gr.update(active=False)]
    place = queries.status().position(job.id)
    shown = details.answers(job, place, bool(blind), current_user(request))
    html = stack(shown, details.gallery(earlier, job.run, now_ms()))
    return [html, gr.update(active=job.state in ACTIVE)]


def act(request: gr.Request, event: gr.EventData) -> Any:
    """A vote, or what can be done to any run."""
    data = getattr(event, "_data", None) or {}
    deed, run = str(data.get("do", "")), str(data.get("run", ""))
    try:
        if deed != details.TIE and not deed.startswith(details.BETTER):
            return show_success(run_action(deed, run, current_user(request)))
        job = _chosen(run)
        if job is None or details.vote_of(job) is not None or deed not in details.votes_on(job):
            raise NotFoundError("There is nothing to vote on.", "It was voted on, or is not there.")
        labels.tag([job.run], [deed], current_user(request))
    except SlimscopeError as error:
        return show_error(error)
    return gr.update(visible=False)


PAGE = Page("Generate", "generate", build, order=80, key="g")
