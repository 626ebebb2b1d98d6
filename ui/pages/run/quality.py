"""What a run's model is worth beside the dense one: quality, size and speed in words and charts,
and what both write. Measured by an evaluation, of which the run is the subject or which it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import gradio as gr

from backend.store import queries
from backend.store.states import ACTIVE, State
from backend.store.tables import Job, Result
from jobs.evaluation import report
from jobs.evaluation.config import MODEL, NAME
from jobs.evaluation.report import CSR, evaluations, samples_of
from ui.format import esc, href, number, share, size
from ui.pages.run.acceleration_charts import format_sizes, sparse_products
from ui.runs.actions import next_links
from ui.runs.html import run_link
from ui.runs.results import RunResults, kind_of
from ui.widgets.chart import PlotlyView, chart_card, note_html
from ui.widgets.html import Cell, badge, card, data_table, empty, stack
from ui.widgets.notice import plain

SIZE_ASK = "How small can the layers be stored?"
PRODUCT_ASK = "From which share of zeros on does leaving them out pay, on this machine?"
NOT_YET = "Whether the model is smaller or faster, and what it writes, has not been measured."
NO_MODEL = "A run of this kind leaves no model whose quality, size and speed could be measured."
ASK = "Evaluate this run"


def build() -> tuple[list[gr.HTML], gr.Row]:
    """Draws the places, what stands in them comes from `draw`; and the row of charts."""
    words = plain(elem_id="measures-said")
    with gr.Row(equal_height=False) as charts:
        sizes = PlotlyView(
            label="Bytes by format", height=280, elem_id="measures-size", render=False
        )
        size_card = chart_card("Size of the linear layers", SIZE_ASK, sizes)
        products = PlotlyView(
            label="Products without zeros", height=280, elem_id="measures-csr", render=False
        )
        product_card = chart_card("Leaving out the zeros", PRODUCT_ASK, products)
    samples = plain(elem_id="measures-samples")
    places = [
        words, size_card.view, size_card.note, size_card.table,
        product_card.view, product_card.note, product_card.table, samples,
    ]  # fmt: skip
    return places, charts


def draw(job: Job | None) -> list[Any]:
    """Words, both charts with note and table, and the samples."""
    if job is None:
        return [""] * 8
    measured = _measured(job)
    rows = {(r.stage, r.metric): r for r in queries.results([measured.run])} if measured else {}
    written = measured if measured and rows else job
    return [
        _words(job, measured, rows), *_sizes(rows, job.run), *_products(rows, job.run),
        samples_html(written),
    ]  # fmt: skip


def _measured(job: Job) -> Job | None:
    """The evaluation that tells of `job`: itself, or the newest of it, one that succeeded first."""
    if job.kind == NAME:
        return job
    found = evaluations(job.run)
    return next((e for e in found if e.state == State.SUCCEEDED), next(iter(found), None))


def _words(job: Job, measured: Job | None, rows: Mapping[tuple[str, str], Result]) -> str:
    """HTML: what was found, and by which run; or how to have it measured."""
    if measured is None:
        return card("Measured on this machine", _invitation(job))
    kind, perplexity = kind_of(measured), _values(rows, "perplexity")
    sentences = [kind.verdict(perplexity)] if kind else []
    sentences += report.verdicts(rows)
    listed = "".join(f"<li>{esc(text)}</li>" for text in sentences if text)
    body = f'<ul class="said">{listed}</ul>' if listed else _invitation(job)
    if not listed and measured.state in ACTIVE:
        body = '<p class="quiet">Figures appear here as they are measured.</p>'
    where = measured.environment.get("cpu" if _on_cpu(measured) else "device", "")
    own = measured.id == job.id
    by = [] if own else [f"{run_link(measured)} {badge(measured.state)}"]
    tail = " · ".join([*by, *([esc(where)] if where else [])])
    return card("Measured on this machine", body + (f'<p class="quiet">{tail}</p>' if tail else ""))


def _on_cpu(job: Job) -> bool:
    return job.environment.get("device") == "cpu"


def _invitation(job: Job) -> str:
    """HTML: how to have the run measured, if there is a model to measure."""
    kind = kind_of(job)
    if kind and not kind.has_models:
        return f'<p class="quiet">{NO_MODEL}</p><div class="actions">{next_links(job)}</div>'
    saved = any(a.kind == "model" for a in queries.artifacts(job.run))
    link = [(href("launch", kind=NAME, model=job.run), ASK)] if saved else []
    return empty(NOT_YET if saved else "This run has saved no model to measure.", *link)


def _values(rows: Mapping[tuple[str, str], Result], metric: str) -> dict[str, float]:
    return {stage: row.value for (stage, name), row in rows.items() if name == metric}


def _sizes(rows: Mapping[tuple[str, str], Result], run: str) -> list[Any]:
    sizes = report.format_bytes(rows)
    if "dense" not in sizes:
        return ["Sizes appear here once they are measured.", note_html(SIZE_ASK), ""]
    zeros = rows[MODEL, "zero_share"]
    counted = f"n = {zeros.n or 0:,} weights, {share(zeros.value)} zeros; values of 16 bits."
    cells: list[list[Cell]] = [
        [esc(name), (size(value), value), (share(value / sizes["dense"]), value / sizes["dense"])]
        for name, value in sizes.items()
    ]
    table = data_table(["Format", "Bytes", "Of dense"], cells, f"{run}-sizes")
    return [format_sizes(sizes), note_html(SIZE_ASK, counted), table]


def _products(rows: Mapping[tuple[str, str], Result], run: str) -> list[Any]:
    row = rows.get((MODEL, CSR))
    if row is None:
        return ["The curve appears here once it is measured.", note_html(PRODUCT_ASK), ""]
    zeros, speed_up = row.details["zeros"], row.details["speed_up"]
    out, inputs = row.details["shape"]
    counted = f"Largest layer, {out:,} × {inputs:,}, float32, CSR, one vector; random zeros."
    cells: list[list[Cell]] = [
        [share(z), (number(up, 3), up)] for z, up in zip(zeros, speed_up, strict=True)
    ]
    table = data_table(["Zeros", "Speed-up, ×"], cells, f"{run}-products")
    figure = sparse_products(zeros, speed_up, row.details["own"])
    return [figure, note_html(PRODUCT_ASK, counted), table]


# what the models write ----------------------------------------------------------------------------


def samples_html(job: Job) -> str:
    """HTML: greedy texts of the dense and of the kept model, side by side, marked from where they
    part; empty for a run that wrote none."""
    figures = RunResults(kind_of(job), queries.results([job.run]), job)
    kept = figures.kept or MODEL
    dense, other = samples_of(job.run), samples_of(job.run, kept)
    if not other:
        return ""
    pairs = zip(dense, other, strict=False) if dense else (({}, each) for each in other)
    body = "".join(_pair(a, b, figures.label(kept)) for a, b in pairs)
    asked = "Greedy texts after the same prompts; the mark begins where the two part."
    return stack(card("What the models write", body + f'<p class="question">{asked}</p>'))


def _pair(dense: Mapping[str, Any], other: Mapping[str, Any], label: str) -> str:
    texts: Sequence[str] = [str(each.get("text", "")).strip() for each in (dense, other)]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    shown = [("Dense", texts[0])] * bool(dense) + [(label, texts[1])]
    columns = "".join(_written(name, text, same if dense else len(text)) for name, text in shown)
    prompt = f'<p class="prompt">{esc(other.get("prompt", ""))}</p>'
    return f'{prompt}<div class="samples">{columns}</div>'


def _written(name: str, text: str, same: int) -> str:
    rest = f"<mark>{esc(text[same:])}</mark>" if text[same:] else ""
    return f"<div><h3>{esc(name)}</h3><p>{esc(text[:same])}{rest}</p></div>"
