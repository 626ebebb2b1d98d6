"""Compare: two to six runs against a baseline: settings that differ, figures, stages, curves,
weights."""

from __future__ import annotations

from typing import Any

import gradio as gr

from backend.store import queries
from backend.store.states import State
from ui.format import esc, href
from ui.frame import SILENT_EVENT, Page, live, on_change, on_load, query, url_sync
from ui.pages.compare import comparison
from ui.pages.compare.charts import SMOOTHING, stage_dots
from ui.pages.compare.comparison import RunComparison
from ui.pages.compare.curves import ASK as CURVES_ASK
from ui.pages.compare.curves import cell, chosen_curve, curve_label, curves_of, drawn_curve
from ui.pages.compare.weights import ASK as WEIGHTS_ASK
from ui.pages.compare.weights import drawn_tensor, tensors_of, weights_held
from ui.runs.bulk_actions import FEWEST, MOST
from ui.runs.rows import all_rows, chosen
from ui.runs.view import query_list
from ui.widgets.chart import ChartCard, PlotlyView, chart_card, note_html
from ui.widgets.download import Download, file_payload
from ui.widgets.dropdown import FreeDropdown
from ui.widgets.html import data_table, empty, skeleton
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import plain

STAGES_ASK = "Which run keeps the model's perplexity best, stage by stage? Lower is better."
RECENT, NEWEST = 50, 3
FEW = f"Pick {FEWEST} to {MOST} runs in the table of runs, then Compare."
EXPORTS = {"csv": comparison.to_csv, "json": comparison.to_json}


def build() -> None:
    head = HtmlPanel(skeleton(180), elem_id="compare-head")
    saver = Download()
    with gr.Column(elem_id="compare-body", visible=False) as body:
        config = plain(elem_id="compare-config")
        figures = plain(elem_id="compare-figures")
        with gr.Row(equal_height=True):
            stages = _stages_card()
            curve, scale, smoothing, lines = _curves_card()
        tensor, weights = _weights_card()

    choice = [curve, scale, smoothing]
    shown = [head, body, config, figures, *_parts(stages)]
    drawn, overlaid = [curve, *_parts(lines)], [tensor, *_parts(weights)]
    live(draw, None, shown)
    on_load(open_curves, None, [scale, smoothing, *drawn])
    on_change(draw_curves, choice, drawn)
    live(draw_weights, tensor, overlaid)
    again = head.view(draw, None, shown, **LATEST)
    again.then(draw_curves, choice, drawn, **SILENT_EVENT).then(
        draw_weights, tensor, overlaid, **SILENT_EVENT
    )
    head.act(export, None, saver, **SILENT_EVENT)
    for changed in (curve.input, scale.input, smoothing.input):
        event = changed(draw_curves, choice, drawn, **LATEST)
        url_sync(event, curve=curve, y=scale, smooth=smoothing)
    url_sync(tensor.input(draw_weights, tensor, overlaid, **LATEST), tensor=tensor)


def _stages_card() -> ChartCard:
    view = PlotlyView(
        label="Perplexity of every stage of the runs", height=360, elem_id="compare-stages",
        render=False, empty="None of these runs has measured perplexity on the baseline's text.",
    )  # fmt: skip
    return chart_card("Perplexity by stage", STAGES_ASK, view)


def _curves_card() -> tuple[FreeDropdown, gr.Radio, FreeDropdown, ChartCard]:
    curve = FreeDropdown([], label="Curve", elem_id="compare-curve", render=False, min_width=200)
    scale = gr.Radio(
        [("Linear", "linear"), ("Log", "log")], value="linear", label="Height axis",
        elem_id="compare-y", render=False, scale=0, min_width=160,
    )  # fmt: skip
    smoothing = FreeDropdown(
        [(name.capitalize(), name) for name in SMOOTHING], value="none", label="Smoothing",
        elem_id="compare-smooth", render=False, min_width=120,
    )  # fmt: skip
    view = PlotlyView(
        label="One curve of the runs, overlaid", height=320, elem_id="compare-lines",
        render=False, empty="None of these runs has drawn a curve.",
    )  # fmt: skip
    card = chart_card("Curves", CURVES_ASK, view, [[curve, smoothing], [scale]])
    return curve, scale, smoothing, card


def _weights_card() -> tuple[FreeDropdown, ChartCard]:
    tensor = FreeDropdown([], label="Tensor", elem_id="compare-tensor", render=False, min_width=240)
    view = PlotlyView(
        label="The weights of one tensor of the runs, overlaid", height=360,
        elem_id="compare-weights", render=False,
        empty="None of these runs has stored weight statistics.",
    )  # fmt: skip
    return tensor, chart_card("Weights", WEIGHTS_ASK, view, [[tensor]])


def _parts(card: ChartCard) -> list[gr.HTML]:
    return [card.view, card.note, card.table]


# what is shown ------------------------------------------------------------------------------------


def compared(request: gr.Request) -> RunComparison | None:
    """The runs in the address, the first of them the baseline unless another is named; None when
    there are too few."""
    rows = chosen(all_rows(), query_list(request, "ids", MOST))
    if len(rows) < FEWEST:
        return None
    base = query(request, "base")
    return RunComparison(rows, next((row for row in rows if row.job.run == base), rows[0]))


def draw(request: gr.Request) -> list[Any]:
    """Head, whether there is anything below it, settings, figures, stages with note and table."""
    of = compared(request)
    if of is None:
        return [nothing_html(), gr.update(visible=False), "", "", None, "", ""]
    return [
        comparison.head_html(of),
        gr.update(visible=True),
        comparison.config_card(of),
        comparison.metrics_card(of),
        *_stages(of),
    ]


def nothing_html() -> str:
    """HTML: what leads to a comparison: the table of runs, or the newest that are alike."""
    alike: dict[object, list[str]] = {}
    for job in queries.jobs([State.SUCCEEDED], limit=RECENT):
        alike.setdefault((job.kind, job.config.get("model")), []).append(job.run)
    newest = next((runs[:NEWEST] for runs in alike.values() if len(runs) >= FEWEST), [])
    near = (href("compare", ids=",".join(reversed(newest))), f"Compare the newest {len(newest)}")
    return empty(FEW, (href("runs"), "To the runs"), *([near] if newest else []))


def _stages(of: RunComparison) -> list[Any]:
    rows = comparison.on_one_text(of)
    figures = {row.job.run: row.figures for row in rows}
    labels = {s: row.figures.label(s) for row in rows for s in row.figures.stages}
    if not rows:
        return [None, note_html(STAGES_ASK), ""]
    left_out = [run for run in of.runs if run not in figures]
    told = f"Not measured on the baseline's text: {', '.join(left_out)}." if left_out else ""
    table = [
        [esc(label), *(cell(f.value(stage, "perplexity")) for f in figures.values())]
        for stage, label in labels.items()
    ]
    return [
        stage_dots(figures, of.strokes, labels),
        note_html(STAGES_ASK, told),
        data_table(["Stage", *figures], table, "perplexity-by-stage"),
    ]


def open_curves(request: gr.Request) -> list[Any]:
    """Height axis, smoothing and curves as the address says."""
    scale = query(request, "y", "linear", ("linear", "log"))
    smoothing = query(request, "smooth", "none", SMOOTHING)
    return [scale, smoothing, *draw_curves(query(request, "curve"), scale, smoothing, request)]


def draw_curves(
    curve: str | None, scale: str | None, smoothing: str | None, request: gr.Request
) -> list[Any]:
    """The curves there are, and the chosen one of every run: chart, note, table."""
    of = compared(request)
    points, offered = curves_of(of) if of else ({}, [])
    if of is None or not offered:
        return [gr.update(choices=[]), None, note_html(CURVES_ASK), ""]
    name = chosen_curve(of, offered, curve)
    choices = [(curve_label(n, of), n) for n in offered]
    return [
        gr.update(choices=choices, value=name),
        *drawn_curve(of, points, name, log_y=scale == "log", smoothing=smoothing),
    ]


def draw_weights(tensor: str | None, request: gr.Request) -> list[Any]:
    """The tensors there are, and the chosen one as each run left it: chart, note, table."""
    of = compared(request)
    held = weights_held(of) if of else {}
    if of is None or not held:
        return [gr.update(choices=[]), None, note_html(WEIGHTS_ASK), ""]
    tensors = tensors_of(held)
    wanted = tensor or query(request, "tensor")
    name = wanted if wanted in tensors else next(iter(tensors))
    choices = [(label, full) for full, label in tensors.items()]
    return [gr.update(choices=choices, value=name), *drawn_tensor(of, held, name)]


# what is done -------------------------------------------------------------------------------------


def export(event: gr.EventData, request: gr.Request) -> Any:
    """Both tables as a file."""
    form, of = str((event._data or {}).get("do")), compared(request)
    if of is None or form not in EXPORTS:
        return gr.skip()
    return file_payload(f"{'-'.join(of.runs)}.{form}", EXPORTS[form](of).encode())


PAGE = Page("Compare", "compare", build, order=40, key="c")
