"""What a run's model is worth beside the dense one: quality, size and speed in words and charts,
and what both write. Measured by an evaluation, of which the run is the subject or which it is."""

import math
from collections.abc import Callable, Mapping, Sequence
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
from jobs.metrics import PERPLEXITY, PRODUCT_SPEED_UP, SPEED_UP, ZERO_SHARE
from ui.charts.chart import Chart
from ui.charts.template import axis, category_axis, layout, log_axis, reference_line
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
PRODUCTS = Panel(
    "product", "Sparse product",
    "At what sparsity does leaving out zeros beat dense on this machine?", 280,
)  # fmt: skip
MEGA = 1e6
DENSE = "dense"
Sample = Mapping[str, Any]


def build() -> Outputs:
    page = Outputs(findings=plain(elem_id="measures-said"))
    with gr.Row(equal_height=False, visible=False) as page["charts"]:
        page |= SIZES.build("measures") | PRODUCTS.build("measures")
    page["samples"] = plain(elem_id="measures-samples")
    return page


def update(job: Job | None) -> Updates:
    """Findings, charts and samples; charts only for evaluated runs whose stages are models."""
    if job is None:
        blank = {"findings": "", "samples": "", "charts": gr.update(visible=False)}
        return updates(blank, SIZES.clear(), PRODUCTS.clear())
    evaluation = _evaluation(job)
    rows = _rows(evaluation)
    kind = kind_of(job)
    html = {
        "charts": gr.update(visible=bool(evaluation) and (kind is None or kind.has_models)),
        "findings": findings(job, evaluation, rows),
        "samples": samples(evaluation if evaluation and rows else job),
    }
    panels = [SIZES.show(_sizes(rows), job.run), PRODUCTS.show(_products(rows), job.run)]
    return updates(html, *panels)


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


def _products(rows: Rows) -> Chart:
    row = rows.get((MODEL, PRODUCT_SPEED_UP))
    if row is None:
        return Chart(
            "The curve appears here once it is measured, where the native decoder leaves out zeros."
        )
    details = row.details
    out, inputs = details["shape"]
    note = (
        f"Largest layer, {out:,} × {inputs:,}, one vector, one thread, native decoder, bfloat16; "
        "random zeros."
    )
    return sparse_products(details["zeros"], details[SPEED_UP.family], details["own"], note)


CHARTS: dict[Panel, Callable[[Job], Chart]] = {
    SIZES: lambda job: _sizes(_rows(_evaluation(job))),
    PRODUCTS: lambda job: _products(_rows(_evaluation(job))),
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


def sparse_products(
    zeros: Sequence[float], speed_up: Sequence[float], own: float, note: str = ""
) -> Chart:
    """Speed-up of a sparse over the dense product, by sparsity (`zeros`, ascending); the model's
    `own` sparsity is marked unless 0."""
    frame = pd.DataFrame({"Zeros, %": [100 * z for z in zeros], "Speed-up, ×": [*speed_up]})
    line = go.Scatter(
        x=frame["Zeros, %"], y=frame["Speed-up, ×"], mode="lines+markers",
        line={"color": BLUE}, marker={"size": 7}, cliponaxis=False,
        hovertemplate="%{x:.4g} % zeros: %{y:.3g} × the dense speed<extra></extra>",
    )  # fmt: skip
    ends = [math.log10(min(*speed_up, 1.0) / 1.15), math.log10(max(*speed_up, 1.0) * 1.15)]
    above = {"yanchor": "bottom"}  # `y` of a label on a log axis is a logarithm
    even = {"text": "as fast as dense", "xref": "paper", "x": 1, "xanchor": "right", "y": 0}
    shapes, labels, places = [reference_line(y=1)], [even | above], range(len(zeros))
    at = max(places, key=speed_up.__getitem__)
    if own >= report.PRUNED_FROM:
        at = min(places, key=lambda i: abs(zeros[i] - own))
        here = {"text": f"this model, {share(own, 0)}", "x": 100 * own, "yref": "paper", "y": 1}
        shapes.append(reference_line(x=100 * own, dash="dot"))
        labels.append(here | above)
    looks = layout(
        view="products", top=24, shapes=shapes, annotations=labels,
        xaxis=axis("Zeros, %", showgrid=False), yaxis=log_axis("Speed-up over dense", ends, " ×"),
    )  # fmt: skip
    times = f"{speed_up[at]:.2f} times as fast as dense"
    headline = f"At {share(zeros[at], 0)} zeros, a product without them is {times}"
    return Chart(go.Figure(line, looks), frame, note, headline=headline)
