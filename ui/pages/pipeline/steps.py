"""The steps of a pipeline: the chain of models, and a table of what each step gives."""

from collections.abc import Iterator, Mapping, Sequence

from backend.errors import SlimscopeError
from backend.metric_key import MetricKey
from backend.store import queries
from backend.store.tables import Job
from jobs import pipeline
from jobs.benchmark import config as benchmark
from jobs.fields.base_model import resolve_model
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
from ui.pages.run.lineage import LineageNode, node
from ui.runs.html import kind_and_settings, run_link
from ui.runs.results import RunResults, base_model, format_value, kind_of
from ui.runs.rows import by_job
from ui.templates import fragments

HTML = fragments("pages/pipeline/page.html")
ALONE = "Alone: "  # a step on the model the pipeline begins with
STEP_METRICS = (PERPLEXITY, TOP1_AGREEMENT, ACCEPTED_LENGTH)
METRICS = (
    PERPLEXITY, TOP1_AGREEMENT, SIZE, BYTES_PER_TOKEN, PASS_MS, TOKENS_PER_SECOND, ACCEPTED_LENGTH,
)  # fmt: skip
HEADS = ["Step", *(metric(name).title for name in METRICS)]  # columns of `step_rows`
Row = list[object]


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
    rows = [_row(base_model(jobs[0]), _base(jobs[0], [*found.values()]))]
    alone = {job.id for job in split_alone(jobs)[1]}
    for job in jobs:
        results, mark = found[job.id], ALONE if job.id in alone else ""
        if job.kind == benchmark.NAME:
            rows += _decoders(job, results, mark)
        else:
            finals = {name: results.final(name) for name in STEP_METRICS}
            values = finals | {SIZE: sizes.get(job.id)}
            rows.append(_row(HTML.step(run_link(job), mark + kind_and_settings(job)), values))
    return rows


def _base(first: Job, found: Sequence[RunResults]) -> Mapping[MetricKey, float | None]:
    """What is known of the model a pipeline begins with: its perplexity, and its size in 16 bits,
    in which models are usually kept."""
    measured = (results.value(results.first, PERPLEXITY) for results in found)
    try:
        size: float | None = 2.0 * resolve_model(base_model(first)).facts.parameters
    except SlimscopeError:
        size = None
    return {PERPLEXITY: next(filter(None, measured), None), SIZE: size}


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
