"""The results of the steps of a pipeline, for the pages of its runs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from markupsafe import Markup

from backend.errors import SlimscopeError
from backend.metric_key import MetricKey
from backend.queue.actor import Actor
from backend.queue.scheduling import pipeline_jobs
from backend.store import queries
from backend.store.tables import Job
from jobs import pipeline
from jobs.benchmark import kind as benchmark
from jobs.fields.models import resolve_model
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
from ui.format import NONE
from ui.runs.actions import pipeline_button
from ui.runs.html import kind_and_settings, run_link
from ui.runs.results import RunResults, base_model, format_value, kind_of
from ui.runs.rows import by_job
from ui.templates import fragments

HTML = fragments("pages/run/pipeline.html")
ALONE = "Alone: "  # a step on the first model of the pipeline
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


def pipeline_card(job: Job, user: Actor) -> Markup:
    """The results of each step of a run's pipeline; empty for a run without a pipeline."""
    jobs = pipeline_jobs(job.id)
    if len(jobs) < 2:
        return Markup()
    return HTML.pipeline(HEADS, step_rows(jobs), pipeline_button(jobs, user))


def step_rows(jobs: Sequence[Job]) -> list[Row]:
    """Metrics by step: of the base model, of each step, and of every decoder of a benchmark."""
    stored = by_job(queries.results([job.run for job in jobs]))
    found = {job.id: RunResults(kind_of(job), stored.get(job.id, []), job) for job in jobs}
    sizes = queries.model_bytes(job.id for job in jobs)
    measured = (results.value(results.first, PERPLEXITY) for results in found.values())
    base = {PERPLEXITY: next(filter(None, measured), None)}
    with suppress(SlimscopeError):
        base[SIZE] = 2.0 * resolve_model(base_model(jobs[0])).facts.parameters  # in 16 bits
    rows = [_row(base_model(jobs[0]), base)]
    for job in jobs:
        results, mark = found[job.id], ALONE if pipeline.ALONE in job.tags else ""
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
    """Rows of the timed decoders of a benchmark, slowest first."""
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
