"""A pipeline: written as YAML and queued; and what each of its steps gives."""

from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import SlimscopeError
from backend.queue import permissions
from backend.queue.dependencies import connected
from jobs import pipeline
from jobs.fields.model import DEFAULT_MODEL
from jobs.kind import kind_named
from ui.format import eta, href, runs
from ui.frame import PRIVATE_EVENT, SILENT_EVENT, Page, current_user, live, on_load, query, url_sync
from ui.pages.pipeline.steps import HEADS, chain, split_alone, step_rows
from ui.runs.actions.single import act, pipeline_button
from ui.runs.choices import models
from ui.runs.results import find_job
from ui.templates import fragments
from ui.widgets.dropdown import dropdown
from ui.widgets.html import problem
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, show_error, show_success

HTML = fragments("pages/pipeline/page.html")
FIRST_PRESET = next(iter(pipeline.PRESETS))
ABOUT = (
    "Several runs, each on what the one before has saved. Change any line; the fields of a step "
    "are those of its form."
)
NOTE = (
    "Perplexity, and the share of positions where the first choice is that of the model it began "
    "with, of the weights each step kept. Size on disk of what it saved; of the first model, in 16 "
    "bits. Speeds were measured in runs of their own, on this machine as it was then."
)


def build() -> None:
    head, shown = HtmlPanel(elem_id="pipeline-head"), HtmlPanel(elem_id="pipeline-steps")
    done = notice("pipeline-done")
    with gr.Column(elem_id="pipeline-form", visible=False) as form, gr.Row(elem_classes="new-run"):
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                preset = gr.Radio([*pipeline.PRESETS], value=FIRST_PRESET, label="Preset")
                model = dropdown("Model", "pipeline-model", value=DEFAULT_MODEL).render()
            text = gr.Textbox(
                label="Pipeline", info=ABOUT, lines=9, max_lines=40, elem_id="pipeline-text",
                max_length=pipeline.LETTERS,
            )  # fmt: skip
        with gr.Column(scale=1, min_width=320, elem_classes="new-side"):
            add = gr.Button("Add to queue", variant="primary", elem_id="pipeline-add")
            message = notice("pipeline-said")
            preview = HtmlPanel(elem_id="pipeline-preview", min_height=160)
    live(draw, None, [head, shown, form])
    head.on_action(act, done, (draw, None, [head, shown, form]))
    written = _preset, [preset, model], [text]
    arrival = on_load(_arrive, None, [preset, model, add])
    arrival.then(*written, **SILENT_EVENT)
    model.input(*written, **SILENT_EVENT)
    url_sync(preset.input(*written, **SILENT_EVENT), preset=preset)
    text.change(_preview, [text], [preview], **LATEST)
    add.click(_queue, [text], [message], **PRIVATE_EVENT)


def _arrive(request: gr.Request) -> tuple[Any, Any, Any]:
    """The preset in the address; today's models; the button is off for those who may not use it."""
    off = permissions.may_not_change(current_user(request))
    button = gr.update(interactive=not off, value=off or "Add to queue")
    preset = query(request, "preset", FIRST_PRESET, pipeline.PRESETS)
    return preset, gr.update(choices=models()), button


def _preset(name: str, model: str | None) -> str:
    return pipeline.preset(name if name in pipeline.PRESETS else FIRST_PRESET, model or "")


def _preview(text: str | None) -> Markup:
    try:
        read = pipeline.read(text or "")
        costs = pipeline.plan(read)
    except SlimscopeError as error:
        return problem(error)
    rows = []
    for number, (step, cost) in enumerate(zip(read.steps, costs, strict=True), 1):
        method = HTML.method(kind_named(step.kind).title, _settings(step))
        rows.append((number, method, eta(cost.seconds) if cost.seconds else "unknown"))
    seconds = pipeline.total(costs)
    together = f"Together {eta(seconds)}." if seconds else ""
    return HTML.preview(rows, together, "slimscope pipeline FILE.yaml")


def _settings(step: pipeline.Step) -> str:
    """The preset and what differs from it: "quick look · pattern 2:4"."""
    given = (f"{name} {value}" for name, value in step.given.items())
    return " · ".join(filter(None, (step.preset, *given))) or "defaults"


def _queue(text: str | None, request: gr.Request) -> Any:
    try:
        jobs = pipeline.queue(pipeline.read(text or ""), current_user(request))
    except SlimscopeError as error:
        return show_error(error)
    return show_success(HTML.added(jobs, href("pipeline", id=jobs[0].run)))


def draw(request: gr.Request) -> tuple[Any, Any, Any]:
    run = query(request, "id")
    job = find_job(run)
    if job is None:
        described = f"There is no run {run}." if run else "Prune, quantise and draft in one go."
        return HTML.head("Pipeline", described), Markup(), gr.update(visible=True)
    jobs = connected(job.id)
    steps, alone = split_alone(jobs)
    told = f"{len(steps)} steps" + (f", and {runs(len(alone))} of steps alone" if alone else "")
    button = pipeline_button(jobs, current_user(request))
    head = HTML.head(job.name or f"Pipeline {jobs[0].run}", told, button)
    body = HTML.body(chain(jobs), HEADS, step_rows(jobs), NOTE)
    return head, body, gr.update(visible=False)


PAGE = Page("Pipeline", "pipeline", build, 105, section="Runs", listed=False, heading=False)
