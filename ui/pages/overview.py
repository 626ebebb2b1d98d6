"""Overview: what goes on, what came out lately, what needs a look."""

from __future__ import annotations

import gradio as gr

from backend.models import catalogue
from backend.queue.service import Actor
from backend.store import queries
from backend.store.queries import Status
from backend.store.session import now_ms
from backend.store.states import State
from backend.store.tables import Job
from jobs.kinds import kinds
from ui.components import run_table
from ui.components.actions import buttons
from ui.components.board import Board
from ui.components.cards import (
    card,
    described,
    error_of,
    named_link,
    progress,
    run_link,
    shell,
    stack,
    table,
    time_left,
    took,
    treated,
)
from ui.components.plain import notice
from ui.format import badge, esc, href, time_tag
from ui.frame import READER, Page, actor, live
from ui.pages.jobs import act

LATEST = 8
NEXT = 3
PROBLEMS = 3
METHODS = {
    "SDS pruning": "zeroes weights, lets the rest recover without a limit, and prunes once more.",
    "DL-QAT (to come)": "trains weights to live on a coarse grid, so that few bits hold them.",
    "Amphista (to come)": "adds heads that draft several tokens at once, for faster text.",
}
LEFT_OUT = {"run", "name", "kind", "model", "choices", "state", "took"}
MODEL = "smollm2-135m"


def build() -> None:
    told = notice("overview-said")
    board = Board(elem_id="overview-board", min_height=320)
    live(draw, None, board)
    acted = board.act(act, None, told, show_progress="hidden", api_visibility="private")
    acted.then(draw, None, board, **READER)


def draw(request: gr.Request) -> str:
    """HTML of the whole page."""
    status, who = queries.status(), actor(request)
    if not (status.live or status.queued or status.finished):
        return f'<div class="overview">{welcome_html()}{models_html()}</div>'
    main = stack(running_html(status, who), latest_html(), models_html())
    side = stack(next_html(status), attention_html(status, who))
    return f'<div class="overview">{main}{side}</div>'


def welcome_html() -> str:
    """HTML for a data folder without runs: what this is for, and the first step."""
    lines = "".join(f"<li><b>{esc(name)}</b> {esc(does)}</li>" for name, does in METHODS.items())
    return (
        '<section class="card welcome"><h2>No runs yet</h2>'
        "<p>Slimscope compresses causal language models and shows what that does to them.</p>"
        f"<ul>{lines}</ul><p>{_new_run()}</p></section>"
    )


def _new_run() -> str:
    where = href("launch", kind=next(iter(kinds()), ""))
    return f'<a class="button primary" data-testid="new-run" href="{where}">New run</a>'


def running_html(status: Status, who: Actor) -> str:
    """HTML: a card for what runs now."""
    if not status.live:
        return card("Running now", '<p class="quiet">Nothing is running.</p>', _new_run())
    return card("Running now", "".join(_running(job, who) for job in status.live), _new_run())


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
    found = queries.jobs([State.SUCCEEDED], limit=LATEST)
    if not found:
        return ""
    rows = run_table.rows(found, queries.results([job.id for job in found]))
    shown = [c for c in run_table.columns(rows) if c.key not in LEFT_OUT]
    cells = [[named_link(r.job), treated(r.job), *(c.html(r) for c in shown)] for r in rows]
    heads = ["Run", "Model and setting", *(c.title for c in shown)]
    numeric = [i for i, c in enumerate(shown, 2) if c.numeric]
    more = f'<a href="{href("runs")}">All runs</a>'
    return card("Latest results", table(heads, cells, numeric), more)


def next_html(status: Status) -> str:
    """HTML: the head of the queue."""
    if not status.queued:
        return ""
    items = "".join(
        f"<li>{run_link(job)} <span>{described(job)}</span></li>" for job in status.queued[:NEXT]
    )
    more = f'<a href="{href("jobs")}">All {len(status.queued)}</a>'
    return card("Next in the queue", f'<ol class="plain">{items}</ol>', more)


def attention_html(status: Status, who: Actor) -> str:
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
    command = f"python -m backend.models.setup {MODEL}"
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


PAGE = Page("Overview", "", build)
