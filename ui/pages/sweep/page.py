"""One sweep: which setting does best, and is the difference larger than that between seeds?"""

from collections.abc import Callable, Sequence

import gradio as gr

from backend.errors import SlimscopeError
from backend.metric_key import MetricKey
from backend.store import queries
from backend.store.tables import Job
from jobs import sweep
from jobs.metrics import Metric, metric, ordered
from jobs.sweep import SweepRow
from ui.charts.chart import Chart
from ui.frame import Page, current_user, live, query, url_sync
from ui.pages.sweep import details
from ui.pages.sweep.charts import HEIGHT, sweep_means
from ui.pages.sweep.settings import headline, importance_chart, last_stage, parallel_chart, ties
from ui.runs.actions.single import act
from ui.runs.html import unknown
from ui.runs.results import setting_title, stages_of
from ui.widgets.dropdown import dropdown
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, plain
from ui.widgets.panel import Outputs, Panel, Updates, page_charts, updates

MEANS = Panel(
    "chart", "Mean and spread over seeds", "Which setting is best, by more than seeds differ?",
    HEIGHT,
)  # fmt: skip
LINES = Panel(
    "lines", "Every combination", "Which combinations of settings lead to which result?", 320
)
IMPORTANCE = Panel(
    "importance", "What matters", "How much of the differences does each setting explain alone?",
    320,
)  # fmt: skip
NO_METRIC = MetricKey("")
GONE = "There is no such sweep any more."
WAITING = "Results appear here as the runs measure them."


def build() -> None:
    head = HtmlPanel(elem_id="sweep-head", min_height=64)
    message = notice("sweep-said")
    shown = dropdown("Metric", "sweep-metric", visible=False)
    page = Outputs(head=head, metric=shown, **MEANS.build("sweep", [[shown]]))
    with gr.Row(equal_height=True, visible=False) as page["settings"]:
        page |= LINES.build("sweep")
        page |= IMPORTANCE.build("sweep")
    page["body"] = plain(elem_id="sweep-runs")

    show = page.named(draw), shown, page.components
    live(*show)
    url_sync(shown.input(*show, **LATEST), metric=shown)
    head.on_action(act, message, show)


def draw(chosen: str | None, request: gr.Request) -> Updates:
    run = query(request, "id")
    jobs = _jobs(run)
    if not jobs:
        what = f"{run} is not part of a sweep." if run else "No sweep is chosen."
        hidden = {"head": unknown("Sweep", what), "metric": gr.update(visible=False)}
        empty = [panel.show(Chart(None)) for panel in (MEANS, LINES, IMPORTANCE)]
        return updates(hidden, *empty, {"settings": gr.update(visible=False), "body": ""})
    keys, rows, shown = _measured(jobs, chosen or query(request, "metric"))
    drawn, nothing = _charts(jobs, rows, shown), Chart(None)
    lines, importance = drawn[LINES], drawn[IMPORTANCE]
    html = {
        "head": details.head(jobs, current_user(request)),
        "metric": gr.update(
            choices=[(m.title, m.name) for m in map(metric, keys)],
            value=shown.name,
            visible=bool(keys),
        ),
        "body": details.body(jobs, rows, shown, stages_of(jobs[0])),
        "settings": gr.update(visible=bool(lines and importance)),
    }
    means = MEANS.show(drawn[MEANS] or nothing, f"{jobs[0].run}-{shown.name}")
    settings = LINES.show(lines or nothing), IMPORTANCE.show(importance or nothing)
    return updates(html, means, *settings)


def _measured(jobs: Sequence[Job], wanted: str) -> tuple[list[MetricKey], list[SweepRow], Metric]:
    rows = details.stage_rows(sweep.table(jobs, queries.results([job.id for job in jobs])))
    keys, key = ordered(row.metric for row in rows), MetricKey.parse(wanted)
    key = key if key in keys else next(iter(keys), NO_METRIC)
    return keys, [row for row in rows if row.metric == key], metric(key)


def _charts(
    jobs: Sequence[Job], rows: Sequence[SweepRow], shown: Metric
) -> dict[Panel, Chart | None]:
    """Charts of one metric; None where there are too few runs. The headline of the means names the
    best value where a single setting varies."""
    labels = stages_of(jobs[0])
    last = last_stage(rows, labels)
    titles = {field: setting_title(jobs[0].kind, field) for field in sweep.varied(jobs)}
    tied = ties(jobs, last, shown)
    alone = len(last) > 1 and len(last[0].values) == 1
    told = headline(last, shown, tied) if alone else ""
    return {
        MEANS: sweep_means(rows, shown, labels, told) if rows else Chart(WAITING),
        LINES: parallel_chart(last, shown, titles, tied),
        IMPORTANCE: importance_chart(last, shown, titles),
    }


def chart_of(panel: Panel) -> Callable[[gr.Request], Chart]:
    def drawn(request: gr.Request) -> Chart:
        jobs = _jobs(query(request, "id"))
        if not jobs:
            return Chart(GONE)
        _, rows, shown = _measured(jobs, query(request, "metric"))
        return _charts(jobs, rows, shown)[panel] or Chart(None)

    return drawn


def _jobs(run: str) -> list[Job]:
    try:
        return queries.sweep(run)
    except SlimscopeError:
        return []


PAGE = Page(
    "Sweep", "sweep", build, order=110, section="Runs", listed=False, heading=False,
    charts=page_charts("sweep", {panel: chart_of(panel) for panel in (MEANS, LINES, IMPORTANCE)}),
)  # fmt: skip
