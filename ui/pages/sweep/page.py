"""One sweep: which setting does best, and is the difference larger than that between seeds?"""

from __future__ import annotations

from typing import Any

import gradio as gr

from backend.errors import NotFoundError, SlimscopeError
from backend.store import queries
from backend.store.tables import Job
from jobs import sweep
from jobs.metrics import metric
from jobs.sweep import SweepRow
from ui.format import href
from ui.frame import SILENT_EVENT, Page, current_user, live, query, url_sync
from ui.pages.sweep import details
from ui.pages.sweep.charts import sweep_means
from ui.runs.actions import act
from ui.runs.results import kind_of
from ui.widgets.chart import PlotlyView, chart_card, note_html
from ui.widgets.dropdown import FreeDropdown
from ui.widgets.html import card, problem, stack
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, plain

ASK = "Which setting does best, and by more than seeds differ?"
WAITING = "Figures appear here as the runs measure them."


def build() -> None:
    head = HtmlPanel(elem_id="sweep-head", min_height=64)
    told = notice("sweep-said")
    of = FreeDropdown([], label="Figure", visible=False, elem_id="sweep-metric", render=False)
    view = PlotlyView(label="Means of the sweep", height=420, elem_id="sweep-chart", render=False)
    chart = chart_card("Mean and spread over seeds", ASK, view, [[of]])
    below = plain(elem_id="sweep-runs")

    shown = [head, of, chart.view, chart.note, chart.table, below]
    live(draw, of, shown)
    url_sync(of.input(draw, of, shown, **LATEST), metric=of)
    acted = head.act(act, None, told, show_progress="hidden", api_visibility="private")
    acted.then(draw, of, shown, **SILENT_EVENT)


def draw(chosen: str | None, request: gr.Request) -> list[Any]:
    """Head, the figures that can be chosen, chart with note and table, and the runs."""
    jobs = _jobs(query(request, "id"))
    if not jobs:
        return [_unknown(query(request, "id")), gr.update(visible=False), None, "", "", ""]
    rows = details.stage_rows(sweep.table(jobs, queries.results([job.id for job in jobs])))
    names = details.metrics(rows)
    wanted = chosen or query(request, "metric")
    name = wanted if wanted in names else next(iter(names), "")
    shown = [row for row in rows if row.metric == name]
    of, kind = metric(name), kind_of(jobs[0])
    labels = kind.stages if kind else {}
    means = details.means_table(jobs, shown, of, labels)
    return [
        details.head_html(jobs, current_user(request)),
        gr.update(choices=[(metric(n).title, n) for n in names], value=name, visible=bool(names)),
        sweep_means(shown, of, labels) if shown else WAITING,
        note_html(ASK, _counted(shown)),
        details.data(shown, of, labels, f"{jobs[0].run}-{name}") if shown else "",
        stack(card(of.title, means) if means else "", details.runs_card(jobs)),
    ]


def _jobs(run: str) -> list[Job]:
    """The runs of the sweep that the run belongs to; none if there is no such run."""
    try:
        return queries.sweep(run)
    except SlimscopeError:
        return []


def _counted(rows: list[SweepRow]) -> str:
    counts = sorted({row.n for row in rows})
    if not counts:
        return ""
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"n = {span} runs a dot. {details.SPREAD}"


def _unknown(run: str) -> str:
    error = NotFoundError(
        f"{run or 'Nothing'} belongs to no sweep.", "", "Choose a run from the list."
    )
    link = f'<p><a class="button" href="{href("runs")}">All runs</a></p>'
    return f"<h1>Sweep</h1>{stack(problem(error), link)}"


PAGE = Page("Sweep", "sweep", build, order=110, in_navbar=False, heading=False)
