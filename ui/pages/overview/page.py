"""Overview: what runs, what is best so far, what needs a look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from backend.models.sources import catalogue
from backend.queue.service import Actor
from backend.store import queries
from backend.store.queries import QueueStatus
from backend.store.session import now_ms
from backend.store.states import State
from backend.store.tables import Job
from jobs.kind import kinds
from jobs.metrics import metric
from ui.format import esc, href
from ui.frame import SILENT_EVENT, Page, current_user, live, query, url_sync
from ui.pages.overview import pareto
from ui.pages.overview.pareto_chart import tradeoff
from ui.pages.overview.tour import tour
from ui.runs import columns as run_columns
from ui.runs import rows as run_rows
from ui.runs.actions import act, buttons
from ui.runs.html import (
    described,
    error_of,
    model_and_settings,
    named_link,
    progress,
    run_link,
    time_left,
    took,
)
from ui.runs.rows import RunRow
from ui.widgets.chart import ChartCard, PlotlyView, chart_card, note_html
from ui.widgets.dropdown import FreeDropdown
from ui.widgets.html import badge, card, empty, shell, skeleton, stack, table, time_tag
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, plain, show_html

NEWEST = 8
NEXT = 3
PROBLEMS = 3
FIGURES = 4
LEFT_OUT = {"run", "name", "kind", "model", "choices", "state", "tags", "took", "age"}
MODEL = "smollm2-135m"
ASK = "Which run gives the best perplexity for its price?"
TO_RUN = "() => { window.location.href = `run?id=${slimscope.picked.customdata}`; }"


def build() -> None:
    tour()
    told = notice("overview-said")
    with gr.Row(elem_classes="overview"):
        with gr.Column(scale=5, min_width=320):
            running = HtmlPanel(skeleton(92), elem_id="overview-running")
            with gr.Column(elem_id="overview-best") as picture:
                group, x, chart = _tradeoff_card()
            latest = HtmlPanel(skeleton(320), elem_id="overview-latest")
        with gr.Column(scale=3, min_width=320):
            front = plain(skeleton(280), elem_id="overview-front")
            side = HtmlPanel(skeleton(140), elem_id="overview-side")
    seen = gr.State(None)

    shown = [running, latest, side]
    drawn = [seen, picture, group, x, chart.view, chart.note, chart.table, front]
    live(draw, None, shown)
    live(draw_best, [seen, group, x], drawn)
    for control in (group, x):
        event = control.input(redraw_best, [group, x], drawn, **LATEST)
        url_sync(event, of=group, x=x)
    chart.view.select(None, None, None, js=TO_RUN)
    for board in shown:
        acted = board.act(act, None, told, show_progress="hidden", api_visibility="private")
        acted.then(draw, None, shown, **SILENT_EVENT)


def _tradeoff_card() -> tuple[FreeDropdown, FreeDropdown, ChartCard]:
    group = FreeDropdown(
        [], label="Model and text", elem_id="overview-of", render=False, min_width=240
    )
    x = FreeDropdown([], label="Price", elem_id="overview-x", render=False, min_width=160)
    view = PlotlyView(
        label="Perplexity against size, zeros or speed, one dot a run", height=400,
        elem_id="overview-tradeoff", render=False,
    )  # fmt: skip
    return group, x, chart_card("Trade-off", ASK, view, [[group, x]])


# what is shown ------------------------------------------------------------------------------------


def draw(request: gr.Request) -> list[str]:
    """HTML of what runs, of what ended, and of what waits or needs a look."""
    status, who = queries.status(), current_user(request)
    if not (status.live or status.queued or status.finished):
        return [empty("No runs yet.", new_run()), "", models_html()]
    return [
        running_html(status, who),
        latest_html(),
        stack(next_html(status), attention_html(status, who), models_html()),
    ]


def new_run() -> tuple[str, str]:
    """Where the first step leads, and what it is called."""
    return href("launch", kind=next(iter(kinds()), "")), "New run"


def _new_run_button() -> str:
    where, words = new_run()
    return f'<a class="button primary" data-testid="new-run" href="{where}">{words}</a>'


def running_html(status: QueueStatus, who: Actor) -> str:
    """HTML: a card for what runs now."""
    body = "".join(_running(job, who) for job in status.live)
    return card(
        "Running now", body or '<p class="quiet">Nothing is running.</p>', _new_run_button()
    )


def _running(job: Job, who: Actor) -> str:
    now = now_ms()
    left = f"{time_left(job)} left, " if job.eta_s is not None else ""
    return (
        f'<article class="running"><div class="card-head"><h3>{run_link(job)} {esc(job.name)}</h3>'
        f'{badge(job.state)}<div class="actions">{buttons(job, who)}</div></div>'
        f'<p class="quiet">{described(job)}</p>{progress(job)}'
        f'<p class="quiet">{left}running for {took(job, now)}</p></article>'
    )


def latest_html() -> str:
    """HTML: the newest succeeded runs, from the untouched model's perplexity to the final one."""
    found = queries.jobs([State.SUCCEEDED], limit=NEWEST)
    if not found:
        return ""
    rows = run_rows.rows(found, queries.results([job.id for job in found]))
    shown = fullest(run_columns.visible_columns((), run_columns.columns(rows)), rows)
    cells = [
        [named_link(r.job), model_and_settings(r.job), *(c.html(r) for c in shown)] for r in rows
    ]
    heads = ["Run", "Model and setting", *(c.title for c in shown)]
    numeric = [i for i, c in enumerate(shown, 2) if c.numeric]
    more = f'<a href="{href("runs")}">All runs</a>'
    return card("Latest results", table(heads, cells, numeric), more)


def fullest(
    usual: Sequence[run_columns.Column], rows: Sequence[RunRow]
) -> list[run_columns.Column]:
    """The figures most of these runs have, as they stand side by side on Runs."""
    found = [c for c in usual if c.key not in LEFT_OUT]
    found = [c for c in found if any(c.value(row) is not None for row in rows)]
    best = sorted(found, key=lambda c: -sum(c.value(row) is not None for row in rows))[:FIGURES]
    return [c for c in found if c in best]


def next_html(status: QueueStatus) -> str:
    """HTML: the head of the queue."""
    if not status.queued:
        return ""
    items = "".join(
        f"<li>{run_link(job)} <span>{described(job)}</span></li>" for job in status.queued[:NEXT]
    )
    more = f'<a href="{href("jobs")}">All {len(status.queued)}</a>'
    return card("Next in the queue", f'<ol class="plain">{items}</ol>', more)


def attention_html(status: QueueStatus, who: Actor) -> str:
    """HTML: the newest runs that failed or were lost."""
    if not status.needs_attention:
        return ""
    now = now_ms()
    found = queries.jobs([State.FAILED, State.LOST], limit=PROBLEMS)
    items = "".join(
        f'<article class="running"><div class="card-head"><h3>{run_link(job)} {esc(job.name)}</h3>'
        f'{badge(job.state)}<div class="actions">{buttons(job, who)}</div></div>{error_of(job)}'
        f'<p class="quiet">{time_tag(job.finished_at, now)}</p></article>'
        for job in found
    )
    more = f'<a href="{href("jobs", state="failed")}">All {status.needs_attention}</a>'
    return card("Needs attention", items, more)


def models_html() -> str:
    """HTML: which models can be used now, and what to do about the one that cannot."""
    entries = catalogue.entries()
    items = "".join(
        f'<li>{_ready(e.ready)} {esc(e.title)} <span class="quiet">{esc(e.note)}</span></li>'
        for e in entries
    )
    command = f"python -m backend.models.sources.setup {MODEL}"
    waiting = any(e.name == MODEL and not e.ready for e in entries)
    how = (
        '<p class="quiet">It is set up by the first run that uses it, or now, in a shell:</p>'
        f"{shell(command)}"
    )
    return card("Models", f'<ul class="plain">{items}</ul>{how if waiting else ""}')


def _ready(ready: bool) -> str:
    word, sign = ("ready", "✓") if ready else ("not set up", "○")
    state = "succeeded" if ready else "queued"
    return f'<span class="state state-{state}"><i aria-hidden="true">{sign}</i>{word}</span>'


# the picture --------------------------------------------------------------------------------------


def draw_best(seen: Any, group: str | None, x: str | None, request: gr.Request) -> Any:
    """The picture, unless no figure has been added since it was drawn."""
    mark = queries.figures_mark()
    if seen == list(mark):
        return gr.skip()
    return redraw_best(group or query(request, "of"), x or query(request, "x"), mark)


def redraw_best(group: str | None, x: str | None, mark: Any = None) -> list[Any]:
    """Mark, whether there is a picture, both choices, chart with note and table, and the front.
    The picture begins with the first run that succeeds."""
    rows = run_rows.all_rows()
    held = pareto.groups(rows)
    of = pareto.chosen_group(held, group or "")
    seen = list(mark or queries.figures_mark())
    if of is None:
        return [seen, gr.update(visible=False), gr.update(), gr.update(), None,
                note_html(ASK), "", show_html("")]  # fmt: skip
    name = x if x in of.axes else of.axes[0]
    points = of.points(name)
    offered = [(metric(n).title, n) for n in of.axes]
    return [
        seen,
        gr.update(visible=True),
        gr.update(choices=[(g.label, g.key) for g in held], value=of.key),
        gr.update(choices=offered, value=name),
        tradeoff(points, metric(name), of.dense),
        note_html(ASK, _counted(points, of.rows)),
        pareto.points_table(of, name),
        show_html(pareto.best_card(of, name)),
    ]


def _counted(points: list[Any], rows: Any) -> str:
    lacking = len(rows) - len(points)
    missing = f", {lacking} without this figure or older than the newest {pareto.MOST}"
    missing = missing if lacking else ""
    sized = " Dots are as large as runs are fast." if any(p.speed for p in points) else ""
    return (
        f"n = {len(points)} runs{missing}; filled: on the Pareto front. A click opens the run."
        f"{sized}"
    )


PAGE = Page("Overview", "", build, order=0, key="o")
