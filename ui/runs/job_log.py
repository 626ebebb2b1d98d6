"""The log and the history of the job in the address, as Jobs and the page of a run show them."""

from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.folders import whole_log
from backend.store import queries
from backend.store.tables import Job
from ui.frame import SILENT_EVENT, live, query
from ui.runs.results import find_job
from ui.templates import fragments
from ui.widgets.download import AT_MOST, Download, file_payload
from ui.widgets.log_view import LogView, part
from ui.widgets.notice import show_error, show_html
from ui.widgets.panel import Outputs, Updates

HTML = fragments("runs/runs.html")
LOG_EVERY = 2.0  # seconds


def build_log(page: str, message: gr.HTML) -> tuple[LogView, gr.Timer]:
    """Draws the job's log with its download button; ids begin with `page`. Returns the log, and the
    timer that follows it."""
    log = LogView(elem_id=f"{page}-log")
    save = gr.Button(
        "Download full log", size="sm", elem_id=f"{page}-log-download", elem_classes="log-download"
    )
    saved = Outputs(file=Download(), message=message)
    timer = gr.Timer(LOG_EVERY, active=False)
    live(follow, log, log)
    timer.tick(follow, log, log, **SILENT_EVENT)
    save.click(saved.named(save_log), None, saved.components, **SILENT_EVENT)
    return log, timer


def chosen_job(request: gr.Request) -> Job | None:
    return find_job(query(request, "id"))


def follow(cursor: Any, request: gr.Request) -> Any:
    job = chosen_job(request)
    new = part(job, cursor) if job else None
    return gr.skip() if new is None else new


def save_log(request: gr.Request) -> Updates:
    try:
        job = queries.job(query(request, "id"))
        text = whole_log(job.run, job.attempts_made)
        if not text:
            raise NotFoundError(f"{job.run} has no log.", "It has not started yet.")
    except SlimscopeError as error:
        return {"message": show_error(error)}
    file = file_payload(f"{job.run}-log.txt", text[-AT_MOST:])
    return {"file": file, "message": show_html()}


def history_html(job: Job) -> Markup:
    events = reversed(queries.events(job.run))
    return HTML.history(
        [[HTML.event_time(e.at), HTML.event(e.type, e.actor, e.text)] for e in events]
    )
