"""The frame of every page: header, status strip, heading, footer and keyboard shortcuts.

A page is redrawn only after a change. Each open page polls `pulse` with a plain request every 2 s
while something runs, every 10 s otherwise, and never in a hidden tab. `live` runs a Gradio event
only when the cursor in the response has changed.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple

import gradio as gr
from gradio.events import Dependency
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.queue.permissions import may_not_add, may_not_ask
from backend.settings import settings
from backend.store.copies import last_check, repair_advice
from ui.charts.chart import Chart
from ui.format import href
from ui.gradio_patches import current_blocks
from ui.health import READER
from ui.security.auth import current_user as current_user
from ui.templates import fragments

VERSION = version("slimscope")
# No progress indicators: for each event, Gradio 6.31 would search the whole page for all outputs
# so far.
PRIVATE_EVENT: dict[str, Any] = {
    "show_progress": "hidden",
    "show_progress_on": [],
    "api_visibility": "private",
}
SILENT_EVENT: dict[str, Any] = {**PRIVATE_EVENT, "concurrency_limit": None, "queue": False}
Handler = Callable[..., Any]  # event function
HTML = fragments("templates/frame.html")
_NAMES = re.compile(r"[\w .:,/+\-@~()%]{1,300}")
_pulse_view: ContextVar[gr.HTML] = ContextVar("pulse_view")


class Shortcut(NamedTuple):
    """A keyboard shortcut: keys pressed in sequence, their effect, and the URL they open, if
    any."""

    keys: str
    effect: str
    address: str = ""


FIXED = (
    Shortcut("/", "Search runs, tensors, pages, settings and terms; Ctrl or ⌘ and K as well"),
    Shortcut("?", "Open help"),
    Shortcut("n", "New run", "new-run"),
    Shortcut("p", "Present this view on the full screen"),
    Shortcut("f", "Show the chart under the pointer, or in focus, on the full screen"),
    Shortcut("Space", "Show the dense model while held, on Weights"),
    Shortcut("1–9", "Choose a stage, on Weights"),
    Shortcut("Esc", "Close the open dialog or list"),
)


def shortcuts(pages: Iterable[tuple[str, str, str]]) -> list[Shortcut]:
    """Return the fixed shortcuts, then one per page (letter, name, path) with a letter."""
    return [
        *FIXED,
        *(Shortcut(f"g {key}", f"Go to {name}", href(path)) for key, name, path in pages if key),
    ]


@dataclass(frozen=True)
class PageChart:
    """A page's chart that stories redraw from the page's URL.

    Attributes:
        title: used if the chart has no title; likewise `question`.
        runs: query field that contains the chart's runs.
    """

    title: str
    question: str
    draw: Callable[[gr.Request], Chart]
    runs: str = ""


@dataclass(frozen=True)
class Page:
    """A page. `build` creates its content inside the frame."""

    name: str
    path: str  # without slashes; "" for the first page
    build: Callable[[], None]
    order: int  # position in the navigation
    section: str = ""  # navigation entry that the page belongs to; its own name makes it an entry
    key: str = ""  # letter of the shortcut "g <letter>"
    listed: bool = True  # False: page of one run, which the search does not offer
    heading: bool = True  # False: the page contains its own `<h1>`
    charts: Mapping[str, PageChart] = field(default_factory=dict)  # element id -> chart


class NavEntry(NamedTuple):
    """A navigation link. `current`: value of `aria-current`, "" if not current."""

    name: str
    address: str
    current: str


def navigation(page: Page, pages: Sequence[Page]) -> list[NavEntry]:
    """Return links to the pages that are entries of the navigation."""
    entries = [entry for entry in pages if entry.section == entry.name]
    current = {page.section: "true", page.name: "page"}
    return [NavEntry(e.name, href(e.path), current.get(e.name, "")) for e in entries]


@contextmanager
def frame(page: Page, pages: Sequence[Page]) -> Iterator[None]:
    destinations = [(entry.name, href(entry.path)) for entry in pages if entry.listed]
    keys = shortcuts((entry.key, entry.name, entry.path) for entry in pages)
    gr.HTML(
        HTML.header(navigation(page, pages), destinations, keys, page.path == "new-run"),
        elem_id="frame-header",
        js_on_load="slimscope.header(element); slimscope.keyboard(element)",
    )
    strip = gr.HTML(
        html_template=HTML.status_line(),
        js_on_load="slimscope.pulse(element, () => trigger('pulse'))",
        elem_id="frame-status",
    )
    token = _pulse_view.set(strip)
    with gr.Column(elem_id="main", elem_classes="page-body"):
        if page.heading:
            # If the navigation already marks the page, the heading is for screen readers only.
            css = ["hidden"] if page.section == page.name else []
            gr.HTML(
                HTML.heading(page.name), elem_id="frame-title", elem_classes=css, js_on_load=None
            )
        yield
    _pulse_view.reset(token)
    named = {entry.name for entry in pages if entry.section == entry.name} | {"New run"}
    others = [(name, address) for name, address in destinations if name not in named]
    gr.HTML(HTML.footer(VERSION, others), elem_id="frame-footer", js_on_load=None)


def on_load(fn: Handler, inputs: Any = None, outputs: Any = None, **options: Any) -> Dependency:
    return current_blocks().load(fn, inputs, outputs, **{**SILENT_EVENT, **options})


def on_change(
    fn: Handler | None, inputs: Any = None, outputs: Any = None, **options: Any
) -> Dependency:
    return _pulse_view.get().pulse(fn, inputs, outputs, **{**SILENT_EVENT, **options})


def live(fn: Handler, inputs: Any = None, outputs: Any = None, **options: Any) -> Dependency:
    """Run `fn` when the page is opened and on each change. Returns the change event."""
    on_load(fn, inputs, outputs, **options)
    return on_change(fn, inputs, outputs, **options)


def url_sync(after: Dependency, **fields: Any) -> Dependency:
    """Write component values into the URL in the browser after an event:
    `url_sync(event, run=run_box)` gives `?run=sds-0042`. Empty values are removed."""
    names = ", ".join(f"v{i}" for i in range(len(fields)))
    pairs = ", ".join(f"{name}: v{i}" for i, name in enumerate(fields))
    return after.then(
        None, list(fields.values()), None, js=f"({names}) => slimscope.address({{{pairs}}})"
    )


def query(
    request: gr.Request, name: str, default: str = "", choices: Collection[str] | None = None
) -> str:
    """Return a query field, or `default` if it is absent, malformed, or not among `choices`."""
    value = str(dict(request.query_params or {}).get(name, default))
    if choices is not None:
        return value if value in choices else default
    return value if _NAMES.fullmatch(value) else default


def pulse(request: Request) -> Response:
    """Answer the poll of an open page: a number that identifies the pages' version, the cursor, the
    activity, and the HTML of the status strip."""
    (snapshot, problem), user = READER.read(), current_user(request)
    status = snapshot.status if snapshot else None
    content: dict[str, Any] = {
        "pages": min(request.app.get_blocks().fns),
        "cursor": snapshot.cursor if snapshot else "",
        "live": bool(problem or (status and (status.live or status.queued))),
        "runs": [job.run for job in status.live] if status else [],
        "badge": HTML.badge(status) if status else "",
        "html": HTML.away(problem) if problem else HTML.status(status),
    }
    if (check := last_check()) and check.problems:
        warning = HTML.damaged(check.problems[0], repair_advice(), user.role == "host")
        content["html"] = warning + content["html"]
    if user.role != "host":
        is_read_only = bool(may_not_add(user) and may_not_ask(user))
        content["html"] += HTML.guest(user.name, is_read_only, settings().shared)
    elif settings().shared:
        content["html"] += HTML.host()
    return JSONResponse(content, headers={"Cache-Control": "no-store"})
