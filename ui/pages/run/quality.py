"""What a run's model is worth beside the dense one: quality, size and speed in words and charts,
and what both write. Measured by an evaluation, of which the run is the subject or which it is."""

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

import gradio as gr
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from backend.store import queries
from backend.store.states import ACTIVE, State
from backend.store.tables import Job
from jobs.evaluation import report
from jobs.evaluation.config import MODEL, NAME
from jobs.evaluation.report import Rows, evaluations, samples_of
from jobs.fields.saved_models import has_saved, ships_without
from jobs.metrics import PERPLEXITY, ZERO_SHARE
from ui.charts.chart import Chart
from ui.charts.template import axis, category_axis, layout
from ui.format import href, share, size
from ui.runs.actions.single import next_links
from ui.runs.pairs import stage_comparison
from ui.runs.results import RunResults, kind_of
from ui.templates import fragments
from ui.theme import BLUE, stage_style
from ui.widgets.notice import plain
from ui.widgets.panel import Outputs, Panel, Updates, updates

HTML = fragments("pages/run/quality.html")
SIZES = Panel("size", "Size of the linear layers", "How small can the layers be stored?", 280)
MEGA = 1e6
DENSE = "dense"
Sample = Mapping[str, Any]


def build() -> Outputs:
    page = Outputs(findings=plain(elem_id="measures-said"))
    with gr.Column(visible=False) as page["charts"]:
        page |= SIZES.build("measures")
    page["samples"] = plain(elem_id="measures-samples")
    return page


def update(job: Job | None) -> Updates:
    """Findings, charts and samples; charts only for evaluated runs whose stages are models."""
    if job is None:
        blank = {"findings": "", "samples": "", "charts": gr.update(visible=False)}
        return updates(blank, SIZES.clear())
    evaluation = _evaluation(job)
    rows = _rows(evaluation)
    kind = kind_of(job)
    html = {
        "charts": gr.update(visible=bool(evaluation) and (kind is None or kind.has_models)),
        "findings": findings(job, evaluation, rows),
        "samples": samples(evaluation if evaluation and rows else job),
    }
    return updates(html, SIZES.show(_sizes(rows), job.run))


def _rows(evaluation: Job | None) -> Rows:
    results = queries.results([evaluation.run]) if evaluation else []
    return {(r.stage, r.metric): r for r in results}


def _evaluation(job: Job) -> Job | None:
    """Newest evaluation of the job, succeeded ones first; the job itself if it is one."""
    if job.kind == NAME:
        return job
    newest_first = evaluations(job.run)
    succeeded = (e for e in newest_first if e.state == State.SUCCEEDED)
    return next(succeeded, next(iter(newest_first), None))


def findings(job: Job, evaluation: Job | None, rows: Rows) -> Markup:
    if evaluation is None:
        return HTML.findings([], False, _invitation(job), None, "")
    kind = kind_of(evaluation)
    perplexity = {s: row.value for (s, name), row in rows.items() if name == PERPLEXITY}
    verdicts = [kind.verdict(stage_comparison(evaluation, perplexity))] if kind else []
    sentences = [text for text in (*verdicts, *report.verdicts(rows)) if text]
    where = evaluation.environment
    processor = where.get("cpu" if where.get("device") == "cpu" else "device", "")
    other = evaluation if evaluation.id != job.id else None
    waiting = evaluation.state in ACTIVE
    return HTML.findings(sentences, waiting, _invitation(job), other, processor)


def _invitation(job: Job) -> Markup:
    kind = kind_of(job)
    if kind and not kind.has_models:
        return HTML.not_a_model(next_links(job))
    if has_saved(job, "model"):
        return HTML.not_evaluated(href("new", kind=NAME, model=job.run), bool(samples(job)))
    return HTML.no_model(href("new", kind=job.kind, **{"from": job.run}), ships_without(job))


def _sizes(rows: Rows) -> Chart:
    sizes = report.format_bytes(rows)
    if DENSE not in sizes:
        return Chart("Sizes appear here once they are measured.")
    zeros = rows[MODEL, ZERO_SHARE]
    note = f"n = {zeros.n or 0:,} weights, {share(zeros.value)} zeros; 16-bit values."
    return format_sizes(sizes, note)


CHARTS: dict[Panel, Callable[[Job], Chart]] = {
    SIZES: lambda job: _sizes(_rows(_evaluation(job))),
}


def samples(job: Job) -> Markup:
    """Greedy texts of the dense and the kept model, marked from their first difference; empty
    without texts."""
    results = RunResults(kind_of(job), queries.results([job.run]), job)
    kept = results.kept or MODEL
    dense, compressed = samples_of(job.run), samples_of(job.run, kept)
    if not compressed:
        return Markup()
    pairs = zip(dense, compressed, strict=False) if dense else (({}, s) for s in compressed)
    return HTML.samples([_pair(a, b, results.label(kept)) for a, b in pairs])


def _pair(dense: Sample, compressed: Sample, label: str) -> tuple[str, list[tuple[str, str, str]]]:
    before, after = (str(sample.get("text", "")).strip() for sample in (dense, compressed))
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    same = len([*alike]) if dense else len(after)
    texts = [("Dense", before[:same], before[same:])] if dense else []
    return str(compressed.get("prompt", "")), [*texts, (label, after[:same], after[same:])]


def format_sizes(sizes: Mapping[str, float], note: str = "") -> Chart:
    frame = pd.DataFrame(
        [(name, value / MEGA, 100 * value / sizes[DENSE]) for name, value in sizes.items()],
        columns=["Format", "Size, MB", "Of dense, %"],
    )
    labels = [
        f"<b>{name}</b><br>{size(v)}, {share(v / sizes[DENSE], 0)}" for name, v in sizes.items()
    ]
    colours = [stage_style(DENSE).colour if name == DENSE else BLUE for name in sizes]
    bars = go.Bar(
        x=frame["Size, MB"], y=labels, orientation="h", width=0.55, marker={"color": colours},
        hovertext=frame["Format"], hovertemplate="%{hovertext}: %{x:.4g} MB<extra></extra>",
    )  # fmt: skip
    width = axis("Megabytes", rangemode="tozero", showgrid=False)
    looks = layout(view="formats", xaxis=width, yaxis=category_axis())
    smallest = min(sizes, key=sizes.__getitem__)
    part = f"{share(sizes[smallest] / sizes[DENSE], 0)} of the dense size"
    told = f"As {smallest} the linear layers take {part}"
    headline = told if smallest != DENSE else "Too few zeros for a sparse format to be smaller"
    return Chart(go.Figure(bars, looks), frame, note, headline=headline)
