"""The page *Compare*: two to six runs and a baseline, with results, stages, curves, weights and
differing settings."""

from collections.abc import Callable, Sequence

import gradio as gr

from backend.store.states import State
from jobs.benchmark.kind import NAME as BENCHMARK
from jobs.metrics import ACCEPTED_LENGTH, PERPLEXITY, SPEED_UP, TOKENS_PER_SECOND
from ui.charts.chart import Chart
from ui.frame import SILENT_EVENT, Page, live, query, url_sync
from ui.pages.compare import comparison
from ui.pages.compare.charts import (
    chosen_curve,
    curve_chart,
    curve_label,
    curves_of,
    most_different,
    stage_dots,
    tensor_chart,
    tensors_of,
    weights_by_run,
)
from ui.pages.compare.comparison import (
    HTML,
    RunComparison,
    texts_card,
    texts_chart,
    trace_card,
    verdict,
)
from ui.runs.actions import MAX_COMPARED, MIN_COMPARED
from ui.runs.deltas import comparison_key
from ui.runs.rows import RunRow, all_rows, chosen
from ui.runs.view import query_list, query_text
from ui.widgets.dropdown import choices, dropdown
from ui.widgets.html import LATEST, HtmlPanel, plain, skeleton
from ui.widgets.panel import Outputs, Panel, Updates, page_charts, updates

STAGES = Panel(
    "stages",
    "Perplexity by stage",
    "Which run keeps the model's perplexity best, stage by stage? Lower is better.",
    360,
)
SPEED_UPS = Panel("speedup", "Speed-up", "Which decoder is faster, in which run?", 300)
LENGTHS = Panel("accepted", "Accepted length", "How many tokens does a step yield?", 300)
BENCHMARKS = {SPEED_UPS: SPEED_UP, LENGTHS: ACCEPTED_LENGTH}
LINES = Panel("lines", "Curves", "Where do the runs diverge?", 320)
WEIGHTS = Panel("weights", "Weights", "What did each run leave of this tensor?", 360)
NO_CURVES = "No two of these runs have recorded the same curve."
NO_BENCHMARKS = "Fewer than two of these runs are benchmarks on one machine and thread count."
NO_WEIGHTS = "None of these runs has stored weight statistics."
NEWEST = 3  # runs shown by default


def build() -> None:
    head = HtmlPanel(skeleton(180), elem_id="compare-head")
    curve = dropdown("Curve", "compare-curve", min_width=200)
    tensor = dropdown("Tensor", "compare-tensor", min_width=240)
    page = Outputs(head=head)
    with gr.Column(elem_id="compare-body", visible=False) as page["body"]:
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                page["results"] = plain(elem_id="compare-figures")
            page |= STAGES.build("compare", scale=2)
        with gr.Row(equal_height=True, visible=False) as page["benchmarks"]:
            for panel in BENCHMARKS:
                page |= panel.build("compare")
        page["config"] = plain(elem_id="compare-config")
        page["texts"] = plain(elem_id="compare-texts")
        with gr.Row(equal_height=False):
            weights = Outputs(tensor=tensor, **WEIGHTS.build("compare", [[tensor]], scale=3))
            lines = Outputs(curve=curve)
            with gr.Column(scale=2, min_width=320) as lines["card"]:
                lines |= LINES.build("compare", [[curve]])
        page["trace"] = plain(elem_id="compare-trace")

    show = page.named(draw), None, page.components
    show_curves = lines.named(draw_curves), curve, lines.components
    show_weights = weights.named(draw_weights), tensor, weights.components
    for shown in (show, show_curves, show_weights):
        live(*shown)
    again = head.view(*show, **LATEST)
    again.then(*show_curves, **SILENT_EVENT).then(*show_weights, **SILENT_EVENT)
    url_sync(curve.input(*show_curves, **LATEST), curve=curve)
    url_sync(tensor.input(*show_weights, **LATEST), tensor=tensor)


def compared(request: gr.Request) -> RunComparison | None:
    """The comparison of the runs in the URL, by default with the first run as baseline; without
    runs in the URL, of the newest runs of one model. None if there are too few runs."""
    found = all_rows()
    if query_text(request, "ids"):
        rows = chosen(found, query_list(request, "ids", MAX_COMPARED))
    else:
        rows = newest_alike(found)
    if len(rows) < MIN_COMPARED:
        return None
    base = query(request, "base")
    return RunComparison(rows, next((row for row in rows if row.job.run == base), rows[0]))


def newest_alike(rows: Sequence[RunRow]) -> list[RunRow]:
    """The newest runs of one model with comparable perplexities, oldest first."""
    alike: dict[object, list[RunRow]] = {}
    for row in rows:
        if row.job.state == State.SUCCEEDED and (key := comparison_key(row)):
            alike.setdefault(key, []).append(row)
    several = (each[:NEWEST] for each in alike.values() if len(each) >= MIN_COMPARED)
    return next(several, [])[::-1]


def draw(request: gr.Request) -> Updates:
    runs = compared(request)
    if runs is None:
        head = HTML.nothing(MIN_COMPARED, MAX_COMPARED, bool(newest_alike(all_rows())))
        return {"head": head, "body": gr.update(visible=False)}
    html = {
        "head": HTML.head(runs.columns, runs.base, verdict(runs)),
        "body": gr.update(visible=True),
        "config": comparison.config_card(runs),
        "results": comparison.metrics_card(runs),
        "texts": texts_card(runs),
        "trace": trace_card(runs),
        "benchmarks": gr.update(visible=len(benchmarks(runs)) >= MIN_COMPARED),
    }
    charts = [panel.show(benchmark_chart(runs, panel)) for panel in BENCHMARKS]
    return updates(html, STAGES.show(stages_chart(runs)), *charts)


def stages_chart(runs: RunComparison) -> Chart:
    rows = comparison.on_one_text(runs)
    if not rows:
        return Chart("None of these runs has measured perplexity on the baseline's text.")
    return stage_dots(runs, rows, PERPLEXITY, left_out(runs, rows, "model and text"))


def benchmarks(runs: RunComparison) -> list[RunRow]:
    """Benchmarks with the device and the number of threads of the baseline."""

    def machine(row: RunRow) -> list[object]:
        return [(row.job.environment or {}).get(name) for name in ("device", "cpu", "threads")]

    timed = (row for row in runs.rows if row.figures.final(TOKENS_PER_SECOND) is not None)
    alike = [row for row in timed if row.job.kind == BENCHMARK]
    return [row for row in alike if machine(row) == machine(runs.base)]


def benchmark_chart(runs: RunComparison, panel: Panel) -> Chart:
    rows = benchmarks(runs)
    if len(rows) < MIN_COMPARED:
        return Chart(NO_BENCHMARKS)
    return stage_dots(runs, rows, BENCHMARKS[panel], left_out(runs, rows, "machine and threads"))


def left_out(runs: RunComparison, rows: Sequence[RunRow], condition: str) -> str:
    missing = runs.names(row.job.run for row in runs.rows if row not in rows)
    return f"Not measured on the baseline's {condition}: {missing}." if missing else ""


def draw_curves(curve: str | None, request: gr.Request) -> Updates:
    runs, wanted = compared(request), curve or query(request, "curve")
    chart, labels, name = lines_chart(runs, wanted) if runs else (Chart(NO_CURVES), [], "")
    choice = gr.update(choices=labels, value=name or None)
    shown = LINES.show(chart, name.replace("/", "-"))
    return {"curve": choice, "card": gr.update(visible=bool(name)), **shown}


def lines_chart(runs: RunComparison, wanted: str) -> tuple[Chart, list[tuple[str, str]], str]:
    """The wanted curve or else the first; labels and names of all curves; its name."""
    points, offered = curves_of(runs)
    if not offered:
        return Chart(NO_CURVES), [], ""
    key = chosen_curve(offered, wanted)
    labels = [(curve_label(one, runs), name) for name, one in offered.items()]
    return curve_chart(runs, points, key), labels, str(key)


def draw_weights(tensor: str | None, request: gr.Request) -> Updates:
    runs, wanted = compared(request), tensor or query(request, "tensor")
    chart, tensors, name = weights_chart(runs, wanted) if runs else (Chart(NO_WEIGHTS), {}, "")
    choice = gr.update(choices=choices(tensors), value=name or None)
    return {"tensor": choice, **WEIGHTS.show(chart, name)}


def weights_chart(runs: RunComparison, wanted: str) -> tuple[Chart, dict[str, str], str]:
    """The wanted tensor or else the one that differs most; labels of all tensors; its name."""
    by_run = weights_by_run(runs)
    if not by_run:
        return Chart(NO_WEIGHTS), {}, ""
    tensors = tensors_of(by_run)
    name = wanted if wanted in tensors else most_different(runs, by_run)
    return tensor_chart(runs, by_run, name), tensors, name


def reported(request: gr.Request) -> tuple[RunComparison, gr.Request] | None:
    runs = compared(request)
    return (runs, request) if runs else None


REPORTED: dict[Panel, Callable[[tuple[RunComparison, gr.Request]], Chart]] = {
    STAGES: lambda at: stages_chart(at[0]),
    Panel("figures", "Results", "What did each run end with?", 0): lambda at: (
        comparison.results_chart(at[0])
    ),
    Panel(
        "texts",
        "Generated text",
        "Where do the runs write something else after the same prompt?",
        0,
    ): lambda at: texts_chart(at[0]),
    SPEED_UPS: lambda at: benchmark_chart(at[0], SPEED_UPS),
    LENGTHS: lambda at: benchmark_chart(at[0], LENGTHS),
    LINES: lambda at: lines_chart(at[0], query(at[1], "curve"))[0],
    WEIGHTS: lambda at: weights_chart(at[0], query(at[1], "tensor"))[0],
}
PAGE = Page(
    "Compare",
    "compare",
    build,
    order=30,
    section="Runs",
    key="c",
    heading=False,
    charts=page_charts(
        "compare", reported, REPORTED, "ids", "Fewer than two of these runs are there."
    ),
)
