"""Jobs: the queue, its progress and its logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.folders import whole_log
from backend.queue.service import Actor
from backend.store import queries
from backend.store.queries import QueueStatus
from backend.store.session import now_ms
from backend.store.states import LIVE, State
from backend.store.tables import Job
from ui.format import count
from ui.frame import SILENT_EVENT, Page, current_user, live, query
from ui.runs.actions import buttons, run_action
from ui.runs.html import error_of, kind_and_settings, named_link, progress, time_left, took
from ui.runs.queue_eta import start_times, start_words
from ui.templates import fragments
from ui.widgets.download import AT_MOST, Download, file_payload
from ui.widgets.html import time_tag
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.log_view import LogView, part
from ui.widgets.notice import notice, plain, show_error, show_html, show_success
from ui.widgets.panel import Outputs, Updates

HTML = fragments("pages/jobs/page.html")
TABS = {"active": "Active", "ended": "Ended", "failed": "Failed"}
ENDED = (State.SUCCEEDED, State.CANCELLED)
FAILED = (State.FAILED, State.LOST)
MAX_JOBS = 100
STALLED = "The supervisor is not running: no job starts until it does."
LOG_EVERY = 2.0  # seconds
Cells = list[Any]  # of a row of the table


def build() -> None:
    message = notice("jobs-said")
    page = Outputs(board=HtmlPanel(elem_id="jobs-board", min_height=160))
    with gr.Row(visible=False, elem_id="jobs-detail") as detail:
        with gr.Column(scale=3, min_width=320, elem_classes="card"):
            page["title"] = plain(elem_id="jobs-log-title")
            log = LogView(elem_id="jobs-log")
            save = gr.Button(
                "Download full log", size="sm", elem_id="jobs-log-download",
                elem_classes="log-download",
            )  # fmt: skip
            saved = Outputs(download=Download(), message=message)
        with gr.Column(scale=2, min_width=320, elem_classes="card"):
            page["history"] = plain(elem_id="jobs-history")
    page |= {"detail": detail, "timer": gr.Timer(LOG_EVERY, active=False)}  # type: ignore[dict-item]
    _wire(page, log, message)
    save.click(saved.named(save_log), None, saved.components, **SILENT_EVENT)


def _wire(page: Outputs, log: LogView, message: gr.HTML) -> None:
    redraw, board, timer = page.named(draw), page["board"], page["timer"]
    live(redraw, None, page.components)
    live(follow, log, log)
    viewed = board.view(redraw, None, page.components, **LATEST)  # type: ignore[attr-defined]
    viewed.then(follow, log, log, **SILENT_EVENT)
    board.view(clear, None, message, **SILENT_EVENT)  # type: ignore[attr-defined]
    acted = board.act(act, None, message, show_progress="hidden", api_visibility="private")  # type: ignore[attr-defined]
    acted.then(redraw, None, page.components, **SILENT_EVENT)
    timer.tick(follow, log, log, **SILENT_EVENT)  # type: ignore[attr-defined]


# what is shown ------------------------------------------------------------------------------------


def draw(request: gr.Request) -> Updates:
    """Table, and log title and history of the chosen job."""
    job = chosen_job(request)
    tab = query(request, "state", "active", TABS)
    board = board_html(queries.status(), tab, job, current_user(request))
    if job is None:
        hidden = {"detail": gr.update(visible=False), "timer": gr.update(active=False)}
        return {"board": board, "title": "", "history": "", **hidden}
    return {
        "board": board,
        "detail": gr.update(visible=True),
        "title": HTML.log_title(job, error_of(job)),
        "history": history_html(job),
        "timer": gr.update(active=job.state in LIVE),
    }


def chosen_job(request: gr.Request) -> Job | None:
    """The job named in the address; None when there is none of that name."""
    try:
        return queries.job(query(request, "id"))
    except SlimscopeError:
        return None


def board_html(status: QueueStatus, tab: str, chosen: Job | None, user: Actor) -> Markup:
    """The tabs, a warning where the queue is stalled, and the jobs."""
    counts = {
        "active": len(status.live) + len(status.queued),
        "ended": status.finished - status.needs_attention,
        "failed": status.needs_attention,
    }
    stalled = STALLED if status.queued and not status.supervisor_alive else ""
    jobs = jobs_of(status, tab)
    open_id = chosen.id if chosen else None
    if tab == "active":
        table = _active(jobs, status, open_id, user)
    else:
        table = _past(jobs, open_id, user, why=tab == "failed")
    return HTML.queue(TABS, tab, counts, stalled, *table)


def jobs_of(status: QueueStatus, tab: str) -> list[Job]:
    """Active: running jobs, then the queue in its order. Others: the last to end first."""
    if tab == "active":
        return [*status.live, *status.queued]
    jobs = queries.jobs(ENDED if tab == "ended" else FAILED, limit=MAX_JOBS)
    return sorted(jobs, key=lambda job: -(job.finished_at or 0))


Table = tuple[Sequence[str], list[Cells], Sequence[int]]  # heads, rows, numeric columns


def _active(jobs: list[Job], status: QueueStatus, open_id: int | None, user: Actor) -> Table:
    now, start = now_ms(), start_times(status)
    rows: list[Cells] = []
    for job in jobs:
        place = status.position(job.id)
        rows.append(
            [
                count(place) if place else "",
                named_link(job),
                kind_and_settings(job),
                _state(job),
                progress(job),
                start_words(start.get(job.id)) if place else time_left(job),
                took(job, now) if job.started_at else "",
                job.owner,
                HTML.actions(job.run, job.id == open_id, buttons(job, user, place)),
            ]
        )
    heads = ["", "Run", "What", "State", "Progress", "Time left", "Running for", "By", "Actions"]
    return heads, rows, (0, len(heads) - 1)


def _past(jobs: list[Job], open_id: int | None, user: Actor, *, why: bool) -> Table:
    now = now_ms()
    rows: list[Cells] = [
        [
            named_link(job),
            kind_and_settings(job),
            _state(job),
            *([HTML.why((job.error or {}).get("what"))] if why else []),
            took(job, now),
            time_tag(job.finished_at, now),
            job.owner,
            HTML.actions(job.run, job.id == open_id, buttons(job, user)),
        ]
        for job in jobs
    ]
    heads = ["Run", "What", "State", *(["Why"] if why else []), "Took", "Ended", "By", "Actions"]
    return heads, rows, (len(heads) - 1,)


def _state(job: Job) -> Markup:
    return HTML.state(job, job.state in LIVE and job.desired != "run")


def history_html(job: Job) -> Markup:
    """The events of the job, the newest first."""
    events = reversed(queries.events(job.run))
    return HTML.history([[HTML.time(e.at), e.type, e.actor, e.text] for e in events])


# what is done -------------------------------------------------------------------------------------


def act(event: gr.EventData, request: gr.Request) -> Any:
    """Carries out the action of a button: what was done, or why not."""
    data = event._data or {}
    try:
        message = run_action(str(data.get("do")), str(data.get("run")), current_user(request))
    except SlimscopeError as error:
        return show_error(error)
    return show_success(message)


def clear() -> Any:
    """Hides the message: it was about another view."""
    return show_html("")


def follow(cursor: Any, request: gr.Request) -> Any:
    """What is new in the log of the chosen job."""
    job = chosen_job(request)
    new = part(job, cursor) if job else None
    return gr.skip() if new is None else new


def save_log(request: gr.Request) -> Updates:
    """The logs of all attempts of the chosen job as one download, or why there is none."""
    try:
        job = queries.job(query(request, "id"))
        text = whole_log(job.run, job.attempts_made)
        if not text:
            raise NotFoundError(f"{job.run} has no log.", "It has not started yet.")
    except SlimscopeError as error:
        return {"message": show_error(error)}
    file = file_payload(f"{job.run}-log.txt", text[-AT_MOST:])
    return {"download": file, "message": show_html("")}


PAGE = Page("Jobs", "jobs", build, order=20, key="j")
