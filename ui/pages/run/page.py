"""One run: what was asked, what came out, how it went, and what it left."""

from __future__ import annotations

from typing import Any

import gradio as gr

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.service import Actor
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import ACTIVE, LIVE
from backend.store.tables import Job
from jobs.metrics import metric
from ui.charts.lines import curves
from ui.charts.stages import perplexity_note, stage_perplexities
from ui.format import esc, href, number
from ui.frame import SILENT_EVENT, Page, current_user, live, on_load, query, url_sync
from ui.pages.run import details, quality
from ui.pages.run.reproduction import replay_card
from ui.runs.actions import act, buttons, clone_link, next_links, sweep_link
from ui.runs.html import described, error_of, progress, took
from ui.runs.job_log import build_log, chosen_job, history_html
from ui.runs.results import RunResults, display_units, kind_of
from ui.widgets.chart import PlotlyView, chart_card, note_html
from ui.widgets.download import Download, small_file
from ui.widgets.dropdown import FreeDropdown
from ui.widgets.html import badge, card, empty, problem, stack, table, time_tag
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, plain, show_error, show_html

TABS = {
    "summary": "Summary", "measures": "Quality, size, speed", "curves": "Curves", "log": "Log",
    "artefacts": "Artefacts",
}  # fmt: skip
CURVES = {"error": ("Relative output error, mean of a block's layers", "Block")}
NO_FIGURES = ("This run measured nothing.", "Figures appear here as they are measured.")
STAGES_ASK = "How much does each step cost, and how much does it win back?"
CURVES_ASK = "Does it go well, and where does it not?"


def build() -> None:
    head = HtmlPanel(elem_id="run-head", min_height=64)
    told = notice("run-said")
    with gr.Tabs(elem_id="run-tabs") as tabs:
        tab = {name: gr.Tab(title, id=name) for name, title in TABS.items()}
    with tab["summary"]:
        summary, stages = _summary()
    with tab["measures"]:
        measured, charts = quality.build()
    with tab["curves"]:
        group, lines = _curves()
    with tab["log"]:
        timer = _log(told)
    with tab["artefacts"]:
        left = _artefacts(told)
    for name, one in tab.items():
        one.select(None, None, None, js=f"() => slimscope.tab('{name}')")

    shown = [head, timer, left, *summary]
    on_load(arrived, None, [tabs, stages, charts])
    live(draw, None, shown)
    live(draw_measures, None, measured)
    live(draw_curves, group, [group, *lines])
    url_sync(group.input(draw_curves, group, [group, *lines], **LATEST), curve=group)
    acted = head.act(act, None, told, show_progress="hidden", api_visibility="private")
    acted.then(draw, None, shown, **SILENT_EVENT)


def _summary() -> tuple[list[gr.HTML], gr.Column]:
    """Everything on the first tab, and the column around the chart of stages."""
    with gr.Row(equal_height=False, elem_classes="run-summary"):
        with gr.Column(scale=3, min_width=320):
            figures = plain(elem_id="run-figures")
            asked = HtmlPanel(elem_id="run-asked")
        with gr.Column(scale=2, min_width=320):
            view = PlotlyView(
                label="Perplexity of each stage", height=280, elem_id="run-stages", render=False
            )
            with gr.Column() as stages:
                chart = chart_card("Perplexity by stage", STAGES_ASK, view)
            went = plain(elem_id="run-went")
    return [figures, chart.view, chart.note, chart.table, asked, went], stages


def _curves() -> tuple[FreeDropdown, list[gr.HTML]]:
    group = FreeDropdown([], label="Curves", visible=False, elem_id="run-curve-group")
    view = PlotlyView(
        label="Curves of the run", height=420, elem_id="run-curve", render=False,
        empty="This run has drawn no curve yet.",
    )  # fmt: skip
    chart = chart_card("Curves", CURVES_ASK, view)
    return group, [chart.view, chart.note, chart.table]


def _log(told: gr.HTML) -> gr.Timer:
    _, timer = build_log("run", told)
    return timer


def _artefacts(told: gr.HTML) -> HtmlPanel:
    left = HtmlPanel(elem_id="run-artefacts", min_height=120)
    saver = Download()
    left.act(download, None, [saver, told], **SILENT_EVENT)
    return left


# what is shown ------------------------------------------------------------------------------------


def arrived(request: gr.Request) -> list[Any]:
    """The tab in the address, none without a run; and the charts of what is measured of a model,
    unless the run's stages are none."""
    job = chosen_job(request)
    kind = kind_of(job) if job else None
    charts = gr.update(visible=kind is None or kind.of_models)
    chosen = query(request, "tab", "summary", TABS)
    return [gr.update(selected=chosen, visible=job is not None), charts, charts]


def draw(request: gr.Request) -> list[Any]:
    """Head, log timer, artefacts, figures, chart of stages with note and table, what was asked, and
    how it went."""
    job = chosen_job(request)
    if job is None:
        return [_unknown(query(request, "id")), gr.update(active=False), *[""] * 7]
    results = queries.results([job.run])
    figures = RunResults(kind_of(job), results)
    measured = "perplexity" in figures.metrics
    chart = stage_perplexities(results, figures.labels) if measured else _no_chart(job)
    return [
        head_html(job, current_user(request)),
        gr.update(active=job.state in LIVE),
        details.artefacts(job.run, queries.artifacts(job.run)) or _none_left(job),
        figures_html(job, figures),
        chart,
        note_html(STAGES_ASK, perplexity_note(results)),
        details.stage_table(figures),
        stack(details.config_card(job), details.text_card(job.environment)),
        went_html(job),
    ]


def draw_measures(request: gr.Request) -> list[Any]:
    """Quality, size and speed of the model beside the dense one."""
    return quality.draw(chosen_job(request))


def _unknown(run: str) -> str:
    error = NotFoundError(
        f"There is no run {run or 'of that name'}.", "", "Choose one from the list."
    )
    link = f'<p><a class="button" href="{href("runs")}">All runs</a></p>'
    return f"<h1>Run</h1>{stack(problem(error), link)}"


def head_html(job: Job, who: Actor) -> str:
    """HTML: name, state, progress, what can be done, and why it failed if it did."""
    name = f'<p class="run-name">{esc(job.name)}</p>' if job.name else ""
    now = now_ms()
    links = next_links(job) + sweep_link(job)
    times = f"by {esc(job.owner)}, {time_tag(job.created_at, now)}"
    if job.started_at:
        times += f", {'took' if job.finished_at else 'running for'} {took(job, now)}"
    return (
        f'<div class="run-title"><h1>{esc(job.run)}</h1>{badge(job.state)}'
        f'<div class="actions">{buttons(job, who)}{clone_link(job)}{links}</div></div>'
        f"{name}"
        f'<p class="quiet">{described(job)} · <span class="nowrap">{times}</span></p>'
        f"{progress(job)}{error_of(job)}{details.warnings(job)}"
    )


def figures_html(job: Job, figures: RunResults) -> str:
    """HTML: outcome, stages and times; a sentence while there are none."""
    now = now_ms()
    stages = details.stage_table(figures)
    times = details.times(figures)
    body = details.outcome(job, figures, now)
    parts = [card("Outcome", body + stages)] if stages or figures.of_run else []
    if not parts:
        parts = [card("Outcome", f'<p class="quiet">{NO_FIGURES[job.state in ACTIVE]}</p>{body}')]
    parts += [card("Time per step", times)] if times else []
    return stack(*parts, replay_card(job))


def went_html(job: Job) -> str:
    """HTML: where it ran, every attempt, and its history."""
    attempts = details.attempts_card(job, queries.attempts(job.run), now_ms())
    history = f'<section class="card">{history_html(job)}</section>'
    return stack(details.environment_card(job), attempts, history)


def _no_chart(job: Job) -> str:
    later = "Perplexity appears here as the stages are measured."
    return later if job.state in ACTIVE else "This run measured no perplexity."


def _none_left(job: Job) -> str:
    later = "The run leaves its model here when it succeeds." if job.state in LIVE else ""
    return empty(later or "This run left no artefacts.")


def draw_curves(chosen: str | None, request: gr.Request) -> list[Any]:
    """The groups of curves, and the chosen group: chart, note, table."""
    job = chosen_job(request)
    points = display_units(queries.curves(job.run)) if job else None
    if job is None or points is None or points.empty:
        return [gr.update(visible=False), None, note_html(CURVES_ASK), ""]
    groups = list(dict.fromkeys(name.split("/")[0] for name in points["name"]))
    wanted = chosen or query(request, "curve")
    group = wanted if wanted in groups else groups[0]
    kind = kind_of(job)
    order = list(kind.stages) if kind else []
    names = sorted(
        {n for n in points["name"] if n.split("/")[0] == group},
        key=lambda n: (order.index(s) if (s := n.split("/")[-1]) in order else len(order), n),
    )
    y_title, x_title = CURVES.get(group, (metric(group).title, "Step"))
    tails = [name.split("/")[-1] for name in names]
    stages = kind.stages if kind else {}
    labels = {tail: stages.get(tail, details.sentence_case(tail)) for tail in tails}
    figure = curves(points, names, labels=labels, x_title=x_title, y_title=y_title)
    wide = points[points["name"].isin(names)].pivot_table("value", "step", "name")[names]
    rows = [[str(step), *map(number, row)] for step, row in wide.T.items()]
    heads = [x_title, *(labels[tail] for tail in tails)]
    return [
        gr.update(choices=[(_group(g), g) for g in groups], value=group, visible=len(groups) > 1),
        figure,
        note_html(CURVES_ASK, f"n = {len(wide)} points a line."),
        table(heads, rows, numeric=range(len(heads))),
    ]


def _group(name: str) -> str:
    return CURVES[name][0] if name in CURVES else metric(name).title


# what is done -------------------------------------------------------------------------------------


def download(event: gr.EventData, request: gr.Request) -> Any:
    """A file of one of the run's artefacts, or why it is not given."""
    asked = event._data or {}
    run, path = str(asked.get("run")), str(asked.get("file"))
    try:
        if not details.may_be_given(run, path):
            raise NotFoundError("This file belongs to no artefact of the run.")
        return [small_file(path), show_html("")]
    except SlimscopeError as error:
        return [gr.skip(), show_error(error)]


PAGE = Page("Run", "run", build, order=100, in_navbar=False, heading=False)
