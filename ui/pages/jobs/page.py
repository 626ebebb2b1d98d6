"""Jobs: the queue, its progress and its logs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.folders import whole_log
from backend.queue.service import Actor
from backend.store import queries
from backend.store.queries import QueueStatus
from backend.store.session import now_ms
from backend.store.states import LIVE, State
from backend.store.tables import Event, Job
from ui.format import NONE, count, esc, href, moment
from ui.frame import SILENT_EVENT, Page, current_user, live, query
from ui.runs.actions import buttons, run_action
from ui.runs.html import (
    error_of,
    kind_and_settings,
    named_link,
    progress,
    run_link,
    time_left,
    took,
)
from ui.runs.queue_eta import start_times, start_words
from ui.widgets.download import AT_MOST, Download, file_payload
from ui.widgets.html import attribute, badge, empty, table, time_tag
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.log_view import LogView, part
from ui.widgets.notice import notice, plain, show_error, show_html, show_success

TABS = {"active": "Active", "ended": "Ended", "failed": "Failed"}
ENDED = (State.SUCCEEDED, State.CANCELLED)
FAILED = (State.FAILED, State.LOST)
SHOWN = 100
STALLED = "The supervisor is not running: nothing starts until it does."
LOG_EVERY = 2.0  # seconds


def build() -> None:
    told = notice("jobs-said")
    board = HtmlPanel(elem_id="jobs-board", min_height=160)
    with gr.Row(visible=False, elem_id="jobs-detail") as detail:
        with gr.Column(scale=3, min_width=320, elem_classes="card"):
            title = plain(elem_id="jobs-log-title")
            log = LogView(elem_id="jobs-log")
            save = gr.Button(
                "Download full log",
                size="sm",
                elem_id="jobs-log-download",
                elem_classes="log-download",
            )
            saver = Download()
        with gr.Column(scale=2, min_width=320, elem_classes="card"):
            history = plain(elem_id="jobs-history")
    timer = gr.Timer(LOG_EVERY, active=False)

    shown = [board, detail, title, history, timer]
    live(draw, None, shown)
    live(follow, log, log)
    board.view(draw, None, shown, **LATEST).then(follow, log, log, **SILENT_EVENT)
    board.view(forget, None, told, **SILENT_EVENT)
    acted = board.act(act, None, told, show_progress="hidden", api_visibility="private")
    acted.then(draw, None, shown, **SILENT_EVENT)
    timer.tick(follow, log, log, **SILENT_EVENT)
    save.click(save_log, None, [saver, told], **SILENT_EVENT)


# what is shown ------------------------------------------------------------------------------------


def draw(request: gr.Request) -> list[Any]:
    """Table, and log title and history of the chosen job."""
    status = queries.status()
    tab = query(request, "state", "active", TABS)
    chosen = chosen_job(request)
    board = board_html(status, tab, chosen, current_user(request))
    if chosen is None:
        return [board, gr.update(visible=False), "", "", gr.update(active=False)]
    return [
        board,
        gr.update(visible=True),
        f"<h2>Log of {run_link(chosen)}</h2>{error_of(chosen)}",
        history_html(chosen),
        gr.update(active=chosen.state in LIVE),
    ]


def chosen_job(request: gr.Request) -> Job | None:
    """The job named in the address; None when there is none of that name."""
    try:
        return queries.job(query(request, "id"))
    except SlimscopeError:
        return None


def board_html(status: QueueStatus, tab: str, chosen: Job | None, who: Actor) -> str:
    """HTML: the tabs, what is wrong with the queue, and the jobs."""
    found = jobs_of(status, tab)
    warning = ""
    if status.queued and not status.supervisor_alive:
        warning = f'<p class="warn">⚠ {STALLED}</p>'
    return _tabs(status, tab) + warning + (_table(found, tab, status, chosen, who) or _nothing(tab))


def jobs_of(status: QueueStatus, tab: str) -> list[Job]:
    """Active: what runs, then the queue in its order. Others: the newest end first."""
    if tab == "active":
        return [*status.live, *status.queued]
    found = queries.jobs(ENDED if tab == "ended" else FAILED, limit=SHOWN)
    return sorted(found, key=lambda job: -(job.finished_at or 0))


def _tabs(status: QueueStatus, tab: str) -> str:
    numbers = {
        "active": len(status.live) + len(status.queued),
        "ended": status.finished - status.needs_attention,
        "failed": status.needs_attention,
    }
    return '<div class="segments" role="group" aria-label="Which jobs">{}</div>'.format(
        "".join(
            f'<button type="button" aria-pressed="{str(name == tab).lower()}" '
            f'data-testid="tab-{name}" data-view="{attribute({"state": name})}">'
            f"{title} <span>{count(numbers[name])}</span></button>"
            for name, title in TABS.items()
        )
    )


def _table(found: list[Job], tab: str, status: QueueStatus, chosen: Job | None, who: Actor) -> str:
    if not found:
        return ""
    if tab == "active":
        return _active(found, status, chosen, who)
    return _past(found, chosen, who, why=tab == "failed")


def _active(found: list[Job], status: QueueStatus, chosen: Job | None, who: Actor) -> str:
    now, start = now_ms(), start_times(status)
    rows = []
    for job in found:
        place = status.position(job.id)
        left = start_words(start.get(job.id)) if place else time_left(job)
        rows.append(
            [
                count(place) if place else "",
                named_link(job),
                kind_and_settings(job),
                _state(job),
                progress(job),
                left,
                took(job, now) if job.started_at else "",
                esc(job.owner),
                _buttons(job, chosen, who, place),
            ]
        )
    heads = ["", "Run", "What", "State", "Progress", "Time left", "Running for", "By", "Actions"]
    return table(heads, rows, numeric=(0, len(heads) - 1))


def _past(found: list[Job], chosen: Job | None, who: Actor, *, why: bool) -> str:
    now = now_ms()
    rows = [
        [
            named_link(job), kind_and_settings(job), _state(job), *([_why(job)] if why else []),
            took(job, now), time_tag(job.finished_at, now), esc(job.owner),
            _buttons(job, chosen, who, None),
        ]
        for job in found
    ]  # fmt: skip
    heads = ["Run", "What", "State", *(["Why"] if why else []), "Took", "Ended", "By", "Actions"]
    return table(heads, rows, numeric=(len(heads) - 1,))


def _state(job: Job) -> str:
    asked = job.state in LIVE and job.desired != "run"
    note = f'<span class="quiet">asked to {esc(job.desired)}</span>' if asked else ""
    return badge(job.state) + note


def _why(job: Job) -> str:
    what = str((job.error or {}).get("what") or "")
    return f'<span class="clip wide" title="{esc(what)}">{esc(what)}</span>' if what else NONE


def _buttons(job: Job, chosen: Job | None, who: Actor, place: int | None) -> str:
    open_ = chosen is not None and chosen.id == job.id
    log = (
        f'<button type="button" class="small" aria-pressed="{str(open_).lower()}" '
        f'data-testid="log-{esc(job.run)}" '
        f'data-view="{attribute({"id": "" if open_ else job.run})}">Log</button>'
    )
    return f'<div class="actions">{log}{buttons(job, who, place)}</div>'


def _nothing(tab: str) -> str:
    sentence = {
        "active": "Nothing runs and nothing waits.",
        "ended": "No run has ended yet.",
        "failed": "Nothing has failed.",
    }[tab]
    return empty(sentence, (href("launch"), "New run"))


def history_html(job: Job) -> str:
    """HTML: what happened to the job, the newest first."""
    rows = [[_at(e), esc(e.type), esc(e.actor), esc(e.text)] for e in queries.events(job.run)]
    return "<h2>History</h2>" + table(["Time", "What", "By", ""], reversed(rows))


def _at(event: Event) -> str:
    return f'<time class="mono">{moment(event.at).removesuffix(" UTC")}</time>'


# what is done -------------------------------------------------------------------------------------


def act(event: gr.EventData, request: gr.Request) -> Any:
    """Does what a button asks for; says what was done, or why not."""
    asked = event._data or {}
    try:
        return show_success(
            run_action(str(asked.get("do")), str(asked.get("run")), current_user(request))
        )
    except SlimscopeError as error:
        return show_error(error)


def forget() -> Any:
    """Takes back what was said: it was about another view."""
    return show_html("")


def follow(cursor: Any, request: gr.Request) -> Any:
    """What is new in the log of the chosen job."""
    job = chosen_job(request)
    new = part(job, cursor) if job else None
    return gr.skip() if new is None else new


def save_log(request: gr.Request) -> list[Any]:
    """The logs of all attempts of the chosen job as one download, or why there is none."""
    try:
        job = queries.job(query(request, "id"))
        text = whole_log(job.run, job.attempts_made)
        if not text:
            raise NotFoundError(f"{job.run} has no log.", "It has not started yet.")
        return [file_payload(f"{job.run}-log.txt", text[-AT_MOST:]), show_html("")]
    except SlimscopeError as error:
        return [gr.skip(), show_error(error)]


PAGE = Page("Jobs", "jobs", build, order=20, key="j")
