"""A pipeline: written as YAML and queued; and what each of its steps gives."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import SlimscopeError
from backend.metric_key import MetricKey
from backend.queue import permissions
from backend.queue.scheduling import pipeline_jobs
from backend.store import queries
from backend.store.tables import Job
from jobs import pipeline
from jobs.benchmark import kind as benchmark
from jobs.fields.models import resolve_model
from jobs.fields.types import DEFAULT_MODEL
from jobs.kind import get_kind
from jobs.metrics import (
    ACCEPTED_LENGTH,
    BYTES_PER_TOKEN,
    PASS_MS,
    PERPLEXITY,
    SIZE,
    TOKENS_PER_SECOND,
    TOP1_AGREEMENT,
    metric,
)
from ui.format import NONE, href, runs, time_range
from ui.frame import PRIVATE_EVENT, SILENT_EVENT, Page, current_user, live, on_load, query, url_sync
from ui.pages.run.details import LineageNode, node
from ui.runs.actions import act, pipeline_button
from ui.runs.choices import models
from ui.runs.html import kind_and_settings, run_link
from ui.runs.results import RunResults, base_model, find_job, format_value, kind_of
from ui.runs.rows import by_job
from ui.templates import fragments
from ui.widgets.dropdown import dropdown
from ui.widgets.html import LATEST, HtmlPanel, notice, problem, show_error, show_success

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
ALONE = "Alone: "  # a step on the model the pipeline begins with
METRICS = (
    PERPLEXITY,
    TOP1_AGREEMENT,
    SIZE,
    BYTES_PER_TOKEN,
    PASS_MS,
    TOKENS_PER_SECOND,
    ACCEPTED_LENGTH,
)
HEADS = ["Step", *(metric(name).title for name in METRICS)]  # columns of `step_rows`
Row = list[object]


def build() -> None:
    head, shown = HtmlPanel(elem_id="pipeline-head"), HtmlPanel(elem_id="pipeline-steps")
    done = notice("pipeline-done")
    with gr.Column(elem_id="pipeline-form", visible=False) as form, gr.Row(elem_classes="new-run"):
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                preset = gr.Radio([*pipeline.PRESETS], value=FIRST_PRESET, label="Preset")
                model = dropdown("Model", "pipeline-model", value=DEFAULT_MODEL).render()
            text = gr.Textbox(
                label="Pipeline",
                info=ABOUT,
                lines=9,
                max_lines=40,
                elem_id="pipeline-text",
                max_length=pipeline.MAX_CHARACTERS,
            )
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
        costs = [planned.estimate for planned in pipeline.plan(read)]
    except SlimscopeError as error:
        return problem(error)
    rows = []
    for number, (step, cost) in enumerate(zip(read.steps, costs, strict=True), 1):
        method = HTML.method(get_kind(step.kind).title, _settings(step))
        rows.append((number, method, time_range(cost.low, cost.high)))
    together = time_range(sum(cost.low for cost in costs), sum(cost.high for cost in costs))
    return HTML.preview(rows, f"Together {together}.", "slimscope pipeline FILE.yaml")


def _settings(step: pipeline.Step) -> str:
    """The preset and what differs from it: "quick look · pattern 2:4"."""
    given = (f"{name} {value}" for name, value in step.settings.items())
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
        described = f"There is no run {run}." if run else "Prune, quantize and draft in one go."
        return HTML.head("Pipeline", described), Markup(), gr.update(visible=True)
    jobs = pipeline_jobs(job.id)
    steps, alone = split_alone(jobs)
    told = f"{len(steps)} steps" + (f", and {runs(len(alone))} of steps alone" if alone else "")
    button = pipeline_button(jobs, current_user(request))
    head = HTML.head(job.name or f"Pipeline {jobs[0].run}", told, button)
    body = HTML.body(chain(jobs), HEADS, step_rows(jobs), NOTE)
    return head, body, gr.update(visible=False)


def split_alone(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Steps of the chain, and the runs it is compared with."""
    chained = [job for job in jobs if pipeline.ALONE not in job.tags]
    return chained, [job for job in jobs if pipeline.ALONE in job.tags]


def chain(jobs: Sequence[Job]) -> list[LineageNode]:
    stored, steps = by_job(queries.results([job.run for job in jobs])), split_alone(jobs)[0]
    return [LineageNode(base_model(jobs[0])), *(node(job, stored) for job in steps)]


def step_rows(jobs: Sequence[Job]) -> list[Row]:
    """Figures by step: of the base model, of each step, and of every decoder of a benchmark."""
    stored = by_job(queries.results([job.run for job in jobs]))
    found = {job.id: RunResults(kind_of(job), stored.get(job.id, []), job) for job in jobs}
    sizes = queries.model_bytes(job.id for job in jobs)
    measured = (results.value(results.first, PERPLEXITY) for results in found.values())
    base = {PERPLEXITY: next(filter(None, measured), None)}
    with suppress(SlimscopeError):
        base[SIZE] = 2.0 * resolve_model(base_model(jobs[0])).facts.parameters  # in 16 bits
    rows = [_row(base_model(jobs[0]), base)]
    alone = {job.id for job in split_alone(jobs)[1]}
    for job in jobs:
        results, mark = found[job.id], ALONE if job.id in alone else ""
        if job.kind == benchmark.NAME:
            rows += _decoders(job, results, mark)
        else:
            finals = {
                name: results.final(name) for name in (PERPLEXITY, TOP1_AGREEMENT, ACCEPTED_LENGTH)
            }
            values = finals | {SIZE: sizes.get(job.id)}
            rows.append(_row(HTML.step(run_link(job), mark + kind_and_settings(job)), values))
    return rows


def _decoders(job: Job, results: RunResults, mark: str) -> Iterator[Row]:
    """Rows of a benchmark's timed decoders, the slowest first; one without figures before."""
    speeds = {stage: results.value(stage, TOKENS_PER_SECOND) for stage in results.stages}
    timed = sorted((s for s, speed in speeds.items() if speed), key=lambda s: speeds[s] or 0.0)
    if not timed:
        yield _row(HTML.step(run_link(job), mark + kind_and_settings(job)), {})
    for stage in timed:
        values = {name: results.value(stage, name) for name in METRICS}
        label = f"{mark}{results.label(stage)} on {job.config['model']}"
        yield _row(HTML.step(run_link(job), label), values)


def _row(label: object, values: Mapping[MetricKey, float | None]) -> Row:
    told = ((metric(name), values.get(name)) for name in METRICS)
    return [label, *(NONE if v is None else format_value(m, v) for m, v in told)]


PAGE = Page("Pipeline", "pipeline", build, 105, section="Runs", listed=False, heading=False)
