"""The frame around every page: header, status strip, heading, footer, keyboard shortcuts, and the
current user.

A page is redrawn only when something has changed. The browser polls `pulse` (a plain request, one
for each open page: every 2 s while something runs, else every 10 s, and not in a hidden tab);
only when the cursor in the answer differs from the last one does `live` run a Gradio event.
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
# Progress is shown on nothing: else Gradio 6.31 looks through the whole page, at each event, for
# every output there has been so far.
PRIVATE_EVENT: dict[str, Any] = {
    "show_progress": "hidden",
    "show_progress_on": [],
    "api_visibility": "private",
}
SILENT_EVENT: dict[str, Any] = {**PRIVATE_EVENT, "concurrency_limit": None, "queue": False}
Handler = Callable[..., Any]  # of an event
HTML = fragments("templates/frame.html")
_NAMES = re.compile(r"[\w .:,/+\-@~()%]{1,300}")
_pulse_view: ContextVar[gr.HTML] = ContextVar("pulse_view")


class Shortcut(NamedTuple):
    """Keys, pressed one after the other; their effect; the address they open, if any."""

    keys: str
    effect: str
    address: str = ""


FIXED = (
    Shortcut("/", "Search runs, pages and terms; Ctrl or ⌘ and K as well"),
    Shortcut("?", "List keyboard shortcuts"),
    Shortcut("n", "New run", "new"),
    Shortcut("p", "Present this view on the full screen"),
    Shortcut("f", "Show the chart under the pointer, or in focus, on the full screen"),
    Shortcut("Esc", "Close the open dialog or list"),
)


def shortcuts(pages: Iterable[tuple[str, str, str]]) -> list[Shortcut]:
    """Fixed shortcuts, then one for each page (letter, name, path) that has a letter."""
    return [
        *FIXED,
        *(Shortcut(f"g {key}", f"Go to {name}", href(path)) for key, name, path in pages if key),
    ]


@dataclass(frozen=True)
class PageChart:
    """Chart of a page, drawn again elsewhere (in reports) from the page's address; title and
    question apply where it has none of its own. `runs` is the query field that holds its runs."""

    title: str
    question: str
    height: int
    draw: Callable[[gr.Request], Chart]
    runs: str = ""


@dataclass(frozen=True)
class Page:
    """One page. `build` makes its content inside the frame."""

    name: str
    path: str  # without a slash; "" is the first page
    build: Callable[[], None]
    order: int  # in the navigation
    section: str = "Explore"  # entry of the navigation; "" for a page outside of it
    key: str = ""  # letter that leads to it, pressed after "g"
    listed: bool = True  # False: of one run or sweep, where the navigation cannot lead
    heading: bool = True  # False: the page writes its own single `<h1>`
    charts: Mapping[str, PageChart] = field(default_factory=dict)  # id of the element -> chart


class NavEntry(NamedTuple):
    """A link of the navigation; `current` is the value of `aria-current`, "" elsewhere."""

    name: str
    address: str
    current: str


def navigation(page: Page, pages: Sequence[Page]) -> tuple[list[NavEntry], list[NavEntry]]:
    """Navigation links: the sections, and the pages of the current section if there are several."""
    listed = [each for each in pages if each.listed and each.section]
    first = {each.section: each for each in reversed(listed)}
    sections = [
        NavEntry(name, href(first[name].path), _current(name == page.name, name == page.section))
        for name in dict.fromkeys(each.section for each in listed)
    ]
    own = []
    for each in [each for each in listed if each.section == page.section]:
        within = not page.listed and each is first[page.section]
        own.append(NavEntry(each.name, href(each.path), _current(each is page, within)))
    return sections, own if len(own) > 1 else []


def _current(here: bool, within: bool = False) -> str:
    return "page" if here else "true" if within else ""


@contextmanager
def frame(page: Page, pages: Sequence[Page]) -> Iterator[None]:
    places = [(each.name, href(each.path)) for each in pages if each.listed]
    keys = shortcuts((each.key, each.name, each.path) for each in pages)
    gr.HTML(
        HTML.header(*navigation(page, pages), places, keys),
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
            # Where the navigation marks the page already, its name is for screen readers alone.
            css = ["hidden"] if page.listed and navigation(page, pages)[1] else []
            gr.HTML(
                HTML.heading(page.name), elem_id="frame-title", elem_classes=css, js_on_load=None
            )
        yield
    _pulse_view.reset(token)
    gr.HTML(HTML.footer(VERSION), elem_id="frame-footer", js_on_load=None)


def on_load(fn: Handler, inputs: Any = None, outputs: Any = None, **options: Any) -> Dependency:
    return current_blocks().load(fn, inputs, outputs, **{**SILENT_EVENT, **options})


def on_change(
    fn: Handler | None, inputs: Any = None, outputs: Any = None, **options: Any
) -> Dependency:
    return _pulse_view.get().pulse(fn, inputs, outputs, **{**SILENT_EVENT, **options})


def live(fn: Handler, inputs: Any = None, outputs: Any = None, **options: Any) -> Dependency:
    """Runs `fn` when the page is opened and on each change; returns the event of a change."""
    on_load(fn, inputs, outputs, **options)
    return on_change(fn, inputs, outputs, **options)


def url_sync(after: Dependency, **fields: Any) -> Dependency:
    """Writes the components' values into the address in the browser after an event:
    `url_sync(event, run=run_box)` gives `?run=sds-0042`; empty values are removed."""
    names = ", ".join(f"v{i}" for i in range(len(fields)))
    pairs = ", ".join(f"{name}: v{i}" for i, name in enumerate(fields))
    return after.then(
        None, list(fields.values()), None, js=f"({names}) => slimscope.address({{{pairs}}})"
    )


def query(
    request: gr.Request, name: str, default: str = "", choices: Collection[str] | None = None
) -> str:
    """Value of a query field; `default` if absent, malformed, or not among `choices`."""
    value = str(dict(request.query_params or {}).get(name, default))
    if choices is not None:
        return value if value in choices else default
    return value if _NAMES.fullmatch(value) else default


def pulse(request: Request) -> Response:
    """Answer to the poll of an open page: which pages there are, by a number that changes with
    them, cursor, activity, and HTML of the status strip."""
    (found, away), user = READER.read(), current_user(request)
    status = found.status if found else None
    content: dict[str, Any] = {
        "pages": min(request.app.get_blocks().fns),
        "cursor": found.cursor if found else "",
        "live": bool(away or (status and (status.live or status.queued))),
        "runs": [job.run for job in status.live] if status else [],
        "html": HTML.away(away) if away else HTML.status(status),
    }
    if (checked := last_check()) and checked.problems:
        warning = HTML.damaged(checked.problems[0], repair_advice(), user.role == "host")
        content["html"] = warning + content["html"]
    if user.role != "host":
        looks_only = bool(may_not_add(user) and may_not_ask(user))
        content["html"] += HTML.guest(user.name, looks_only, settings().shared)
    elif settings().shared:
        content["html"] += HTML.host()
    return JSONResponse(content, headers={"Cache-Control": "no-store"})
