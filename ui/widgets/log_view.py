"""Log of a run, of which only new bytes travel. The browser keeps the cursor `{"source", "end"}`;
the server answers with what follows, `{"source", "start", "end", "text"}`. A lost answer is
repeated."""

from typing import Any, TypedDict

import gradio as gr

from backend.queue.folders import TAIL_BYTES, read_log
from backend.store.tables import Job
from jobs.fields.saved_models import NO_WEIGHTS, ships_without
from ui.templates import fragments

HTML = fragments("widgets/log_view.html")


class LogPart(TypedDict):
    """Bytes `start` to `end` of the log `source`, shown as `title`."""

    source: str
    title: str
    start: int
    end: int
    text: str


class LogView(gr.HTML):
    """Newest part of a log, scrolled to its end while `Follow` is ticked. Input: cursor, output: a
    `LogPart`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            None,
            html_template=HTML.log(),
            js_on_load="slimscope.logView(element, props, watch)",
            apply_default_css=False,
            **options,
        )


def without_overprint(text: str) -> str:
    """Final state of overwritten lines, such as progress bars."""
    *lines, last = text.split("\n")
    bodies = [line.removesuffix("\r") for line in lines]
    ended = [_newest(body) + line[len(body) :] for line, body in zip(lines, bodies, strict=True)]
    return "\n".join([*ended, _newest(last)])


def _newest(line: str) -> str:
    return line.rpartition("\r")[2]


def part(job: Job, cursor: Any) -> LogPart | None:
    """Part of the newest attempt's log after the browser's cursor; None: nothing new."""
    n = job.attempts_made
    source = f"{job.run}/{n}"
    known = isinstance(cursor, dict) and cursor.get("source") == source
    after = cursor.get("end") if known else None
    after = after if isinstance(after, int) else None
    text, start, end = read_log(job.run, n, after, TAIL_BYTES)
    if after is not None and not text:
        return None
    if after is not None and start > after:
        start = 0  # so much was written meanwhile that the page begins anew
    title = f"Attempt {n}" if n else "Nothing is logged before the run starts."
    title += f". {NO_WEIGHTS}" if ships_without(job) else ""  # whatever it says was saved
    return LogPart(source=source, title=title, start=start, end=end, text=without_overprint(text))
