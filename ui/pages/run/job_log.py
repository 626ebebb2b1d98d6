"""Log and history of the job in the address, for the page *Run*.

Only new bytes of a log are sent. The browser keeps the cursor `{"source", "end"}`; the server
replies with the following bytes, `{"source", "start", "end", "text"}`. A reply that is lost, or not
drawn yet, is sent again: until it is drawn, the browser returns the reply instead of a cursor."""

from typing import Any, TypedDict

import gradio as gr
from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.artifacts import TAIL_BYTES, full_log, read_log
from backend.store import queries
from backend.store.tables import Job
from jobs.fields.models import NO_WEIGHTS, lacks_weights
from ui.frame import SILENT_EVENT, live, query
from ui.runs.results import find_job
from ui.templates import fragments
from ui.widgets.html import AT_MOST, Download, file_payload, show_error, show_html
from ui.widgets.panel import Outputs, Updates

HTML = fragments("runs/runs.html")


class LogPart(TypedDict):
    """Bytes `start` to `end` of the log `source`, shown as `title`."""

    source: str
    title: str
    start: int
    end: int
    text: str


def without_overprint(text: str) -> str:
    """Replace each overwritten line, such as a progress bar, with its last state."""
    *lines, last = text.split("\n")
    bodies = [line.removesuffix("\r") for line in lines]
    ended = [
        body.rpartition("\r")[2] + line[len(body) :]
        for line, body in zip(lines, bodies, strict=True)
    ]
    return "\n".join([*ended, last.rpartition("\r")[2]])


def log_part(job: Job, cursor: Any) -> LogPart | None:
    """Part of the newest attempt's log after the browser's cursor; None if there is no new text.

    Args:
        cursor: unchecked value from the browser.
    """
    n = job.attempts_made
    source = f"{job.run}/{n}"
    last = cursor if isinstance(cursor, dict) and cursor.get("source") == source else {}
    is_drawn = "text" not in last  # a log in a tab that is not open yet is not drawn
    after = last.get("end" if is_drawn else "start")
    after = after if isinstance(after, int) else None
    text, start, end = read_log(job.run, n, after, TAIL_BYTES)
    if after is not None and (not text or end == last.get("end")):
        return None
    if after is not None and start > after:
        start = 0  # more than the tail is new, so the page replaces its text
    title = f"Attempt {n}" if n else "The log begins when the run starts."
    title += f". {NO_WEIGHTS}" if lacks_weights(job) else ""  # although the log reports saved files
    return LogPart(source=source, title=title, start=start, end=end, text=without_overprint(text))


def build_log(page: str, message: gr.HTML) -> tuple[gr.HTML, gr.Timer]:
    """Draw the job's log with a download button; return the log and its refresh timer.

    The log scrolls to its end while `Follow` is ticked. Its input is the browser's cursor, its
    output a `LogPart`."""
    log = gr.HTML(
        html_template=HTML.log(),
        js_on_load="slimscope.logView(element, props, watch)",
        apply_default_css=False,
        elem_id=f"{page}-log",
    )
    save = gr.Button(
        "Download full log", size="sm", elem_id=f"{page}-log-download", elem_classes="log-download"
    )
    saved = Outputs(file=Download(), message=message)
    timer = gr.Timer(2.0, active=False)
    live(follow, log, log)
    timer.tick(follow, log, log, **SILENT_EVENT)
    save.click(saved.named(save_log), None, saved.components, **SILENT_EVENT)
    return log, timer


def chosen_job(request: gr.Request) -> Job | None:
    """The job in the address; None if the address names no existing job."""
    return find_job(query(request, "id"))


def follow(cursor: Any, request: gr.Request) -> Any:
    """Update of the log: the text after the browser's cursor."""
    job = chosen_job(request)
    new = log_part(job, cursor) if job else None
    return gr.skip() if new is None else new


def save_log(request: gr.Request) -> Updates:
    """Updates that download the logs of all attempts."""
    try:
        job = queries.job(query(request, "id"))
        text = full_log(job.run, job.attempts_made)
        if not text:
            raise NotFoundError(f"{job.run} has no log.", "The run has not started yet.")
    except SlimscopeError as error:
        return {"message": show_error(error)}
    file = file_payload(f"{job.run}-log.txt", text[-AT_MOST:])
    return {"file": file, "message": show_html()}


def history_html(job: Job) -> Markup:
    """The events of a job, newest first."""
    events = reversed(queries.events(job.run))
    return HTML.history(
        [[HTML.event_time(e.at), HTML.event(e.type, e.actor, e.text)] for e in events]
    )
