"""Jobs: the queue, its progress and its logs."""

from collections.abc import Callable, Iterable

import gradio as gr
from markupsafe import Markup

from backend.queue import scheduling
from backend.queue.actor import Actor
from backend.queue.scheduling import QueueStatus, awaited
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import LIVE, State
from backend.store.tables import Job
from ui.format import count
from ui.frame import SILENT_EVENT, Page, current_user, live, query
from ui.runs.actions import act, buttons
from ui.runs.html import (
    elapsed,
    error_of,
    kind_and_settings,
    named_link,
    progress,
    time_left,
    took,
    waiting_html,
)
from ui.runs.job_log import build_log, chosen_job, follow, history_html
from ui.runs.queue_eta import start_times, start_words
from ui.templates import fragments
from ui.widgets.html import LATEST, HtmlPanel, notice, plain, show_html, time_tag
from ui.widgets.panel import Outputs, Updates

HTML = fragments("pages/queue/page.html")
TABS = {"active": "Active", "ended": "Ended", "failed": "Failed"}
ENDED = (State.SUCCEEDED, State.CANCELLED)
FAILED = (State.FAILED, State.LOST)
STALLED = "The supervisor is not running: no job starts until it does."
Columns = dict[str, Callable[[Job], object]]


def build() -> None:
    message = notice("queue-said")
    page = Outputs(board=HtmlPanel(elem_id="queue-board", min_height=160))
    with gr.Row(visible=False, elem_id="queue-detail") as page["detail"]:
        with gr.Column(scale=3, min_width=320, elem_classes="card"):
            page["title"] = plain(elem_id="queue-log-title")
            log, page["timer"] = build_log("jobs", message)
        with gr.Column(scale=2, min_width=320, elem_classes="card"):
            page["history"] = plain(elem_id="queue-history")

    show, board = (page.named(draw), None, page.components), page["board"]
    live(*show)
    viewed = board.view(*show, **LATEST)
    viewed.then(follow, log, log, **SILENT_EVENT)
    board.view(show_html, None, message, **SILENT_EVENT)  # it was about another view
    board.on_action(act, message, show)


def draw(request: gr.Request) -> Updates:
    job = chosen_job(request)
    tab = query(request, "state", "active", TABS)
    board = board_html(scheduling.status(), tab, job, current_user(request))
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


def board_html(status: QueueStatus, tab: str, chosen: Job | None, user: Actor) -> Markup:
    counts = {  # of runs that were queued here: examples were not
        "active": len(status.live) + len(status.queued),
        "ended": status.finished - status.needs_attention - queries.example_count(),
        "failed": status.needs_attention,
    }
    stalled = STALLED if status.stalled else ""
    jobs = [*status.live, *status.queued]
    idle = tab == "active" and not jobs and counts["ended"] > 0
    listed = "ended" if idle else tab
    if listed != "active":
        ended = queries.jobs(ENDED if listed == "ended" else FAILED, limit=100)
        jobs = sorted((j for j in ended if j.id > 0), key=lambda job: -(job.finished_at or 0))
    columns = _columns(listed, status, chosen.id if chosen else None, user, jobs)
    rows = [[cell(job) for cell in columns.values()] for job in jobs]
    numeric = [place for place, title in enumerate(columns) if title in ("", "Actions")]
    return HTML.queue(TABS, tab, counts, stalled, [*columns], rows, numeric, idle)


def _columns(
    tab: str, status: QueueStatus, open_id: int | None, user: Actor, jobs: Iterable[Job]
) -> Columns:
    now, place = now_ms(), status.position
    waiting = awaited(job.id for job in status.queued) if tab == "active" else {}
    columns: Columns = {
        "Run": named_link,
        "What": kind_and_settings,
        "State": lambda job: HTML.state(job, job.state in LIVE and job.desired != "run"),
    }
    if tab == "active":
        start = start_times(status, waiting)
        columns = {"": lambda job: count(place(job.id)) if place(job.id) else "", **columns} | {
            "Progress": progress,
            "Time left": lambda job: (
                waiting_html(waiting[job.id])
                if job.id in waiting
                else start_words(start.get(job.id))
                if place(job.id)
                else time_left(job)
            ),
            "Running for": lambda job: took(job, now) if job.started_at else "",
        }
    else:
        if tab == "failed":
            columns["Why"] = lambda job: HTML.why((job.error or {}).get("what"))
        seconds = {job.id: elapsed(job, now) or 0 for job in jobs}
        longest = max(seconds.values(), default=0) or 1
        columns["Took"] = lambda job: HTML.lasted(seconds[job.id] / longest, took(job, now))
        columns["Ended"] = lambda job: time_tag(job.finished_at, now)

    columns["By"] = lambda job: job.owner
    columns["Actions"] = lambda job: HTML.actions(
        job.run, job.id == open_id, buttons(job, user, None if job.id in waiting else place(job.id))
    )
    return columns


PAGE = Page("Queue", "queue", build, order=25, section="Runs", key="j")
