"""Home: what compression did to a model, what runs, what is best so far, what needs a look."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.metric_key import MetricKey
from backend.queue import scheduling
from backend.queue.actor import Actor
from backend.queue.scheduling import QueueStatus
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import State
from jobs.metrics import metric
from ui.charts.chart import Chart
from ui.frame import Page, current_user, live, on_change, query, url_sync
from ui.pages.home import pareto
from ui.pages.home.exhibits import draw_exhibits, draw_toy, home_act, launch_address
from ui.pages.home.pareto import ComparableRuns, ParetoPoint, tradeoff
from ui.runs import columns as run_columns
from ui.runs import rows as run_rows
from ui.runs.actions import buttons
from ui.runs.html import (
    described,
    error_of,
    model_and_settings,
    named_link,
    progress,
    time_left,
    took,
)
from ui.templates import fragments
from ui.widgets.dropdown import dropdown
from ui.widgets.explorer import page_state
from ui.widgets.html import LATEST, HtmlPanel, notice, skeleton
from ui.widgets.panel import Outputs, Panel, Updates, page_charts, updates

HTML = fragments("pages/home/page.html")
NEWEST, NEXT, PROBLEMS = 8, 3, 3  # rows of a card
FIGURES = 4  # columns of the latest results
COMPARED = 3
LEFT_OUT = {"run", "name", "kind", "model", "choices", "state", "tags", "took", "age"}
TRADEOFF = Panel("tradeoff", "Perplexity vs. cost", "Which runs are on the Pareto front?", 400)
TO_RUN = "() => { window.location.href = `run?id=${slimscope.picked.customdata}`; }"


def build() -> None:
    message = notice("home-said")
    group = dropdown("Model and text", "home-of", min_width=240)
    x = dropdown("Cost", "home-x", min_width=160)
    mark = page_state()
    best = Outputs(of=group, x=x, mark=mark)
    hero = HtmlPanel(skeleton(440), elem_id="home-hero")
    running = HtmlPanel(elem_id="home-running")
    methods = HtmlPanel(skeleton(280), elem_id="home-methods")
    with gr.Row(elem_classes="home"):
        with gr.Column(scale=5, min_width=320):
            latest = HtmlPanel(skeleton(280), elem_id="home-latest")
            with gr.Column(elem_id="home-best") as best["column"]:
                best |= TRADEOFF.build("home", [[group, x]])
        with gr.Column(scale=3, min_width=320):
            side = HtmlPanel(elem_id="home-side")

    page = Outputs(running=running, latest=latest, side=side)
    show = page.named(draw), None, page.components
    live(*show)
    said = Outputs(said=message, toy=page_state())
    on_change(said.named(draw_toy), said["toy"], said.components)
    exhibits = Outputs(seen=page_state(), hero=hero, methods=methods)
    live(exhibits.named(draw_exhibits), exhibits["seen"], exhibits.components)
    live(best.named(draw_best), [mark, group, x], best.components)
    for control in (group, x):
        event = control.input(best.named(redraw_best), [group, x], best.components, **LATEST)
        url_sync(event, of=group, x=x)
    best["tradeoff_chart"].select(None, None, None, js=TO_RUN)
    for panel in (running, latest, side, hero, methods):
        panel.on_action(said.named(home_act), said.components, show)


def draw(request: gr.Request) -> Updates:
    """What runs, what ended, and what waits or needs a look."""
    status, actor, now = scheduling.status(), current_user(request), now_ms()
    live_runs = [
        (job, buttons(job, actor), described(job), progress(job), time_left(job), took(job, now))
        for job in status.live
    ]
    return {
        "running": HTML.running(live_runs, launch_address()) if live_runs else "",
        "latest": latest_html(),
        "side": side_html(status, actor) if status.queued or status.needs_attention else "",
    }


def latest_html() -> Markup:
    jobs = queries.jobs([State.SUCCEEDED], limit=NEWEST)
    if not jobs:
        return Markup()
    jobs.sort(key=lambda job: -(job.finished_at or 0))  # the numbers of examples tell no order
    rows = [
        row
        for row in run_rows.rows(jobs, queries.results([job.id for job in jobs]))
        if row.figures.final_keys
    ]
    usual = run_columns.visible_columns((), run_columns.columns(rows))
    filled = [c for c in usual if any(c.value(row) not in (None, "") for row in rows)]
    columns = [c for c in filled if c.key not in LEFT_OUT][:FIGURES]
    cells = [
        [named_link(r.job), model_and_settings(r.job), *(c.html(r) for c in columns)] for r in rows
    ]
    heads = ["Run", "Model and setting", *(c.title for c in columns)]
    return HTML.latest(heads, cells, [i for i, c in enumerate(columns, 2) if c.numeric])


def side_html(status: QueueStatus, actor: Actor) -> Markup:
    queued = [(job, described(job)) for job in status.queued[:NEXT]]
    failed = queries.jobs([State.FAILED, State.LOST], limit=PROBLEMS)
    problems = [(job, buttons(job, actor), error_of(job)) for job in failed]
    return HTML.side(
        queued,
        len(status.queued),
        problems if status.needs_attention else [],
        status.needs_attention,
        now_ms(),
    )


def draw_best(mark: Any, group: str | None, x: str | None, request: gr.Request) -> Updates:
    newest = queries.figures_mark()
    if mark == list(newest):
        return {}
    return redraw_best(group or query(request, "of"), x or query(request, "x"), newest)


def redraw_best(group: str | None, x: str | None, mark: Any = None) -> Updates:
    options = pareto.groups(run_rows.all_rows())
    runs = pareto.chosen_group(options, group or "")
    compared = _compared(runs) if runs else []
    visible = gr.update(visible=bool(compared))
    drawn = {"mark": list(mark or queries.figures_mark()), "column": visible}
    if runs is None or not runs.axes:
        return {**drawn, **TRADEOFF.clear()}
    key = _known_axis(x, [*compared, *runs.axes])
    controls = {
        "of": gr.update(choices=[(g.label, g.key) for g in options], value=runs.key),
        "x": gr.update(choices=[(m.title, m.name) for m in map(metric, runs.axes)], value=str(key)),
    }
    return updates(drawn, controls, TRADEOFF.show(tradeoff_chart(runs, key)))


def _compared(runs: ComparableRuns) -> list[MetricKey]:
    """The costs by which enough runs can be compared."""
    return [key for key in runs.axes if len(runs.points(key)) >= COMPARED]


def tradeoff_chart(runs: ComparableRuns, key: MetricKey) -> Chart:
    points = runs.points(key)
    note = _note(points, len(runs.rows) - len(points))
    return tradeoff(points, metric(key), runs.dense, note)


def _tradeoff_at(request: gr.Request) -> Chart:
    runs = pareto.chosen_group(pareto.groups(run_rows.all_rows()), query(request, "of"))
    if runs is None or not (axes := [*_compared(runs), *runs.axes]):
        return Chart(None)
    return tradeoff_chart(runs, _known_axis(query(request, "x"), axes))


def _known_axis(name: str | None, axes: Sequence[MetricKey]) -> MetricKey:
    """The cost of that name, or else the first."""
    key = MetricKey.parse(name or "")
    return key if key in axes else axes[0]


def _note(points: Sequence[ParetoPoint], missing: int) -> str:
    sized = " Dot area: tokens per second." if any(p.speed for p in points) else ""
    lacking = f", {missing} without this figure or older than the newest {pareto.MAX_POINTS}"
    return (
        f"n = {len(points)} runs{lacking if missing else ''}; filled: on the Pareto front."
        f"{sized} Click a dot to open its run."
    )


PAGE = Page(
    "Home",
    "",
    build,
    order=0,
    section="Home",
    key="h",
    heading=False,
    charts=page_charts("home", lambda request: request, {TRADEOFF: _tradeoff_at}),
)
