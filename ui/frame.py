"""What every page shares: header, status strip, heading, footer, and who is asking.

A page is redrawn only when something has changed. The browser asks `pulse` (a plain request, one
for each open page: every 2 s while something runs, else every 10 s, and not in a hidden tab);
only when the cursor in the answer differs from the last one does `live` run a Gradio event.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import gradio as gr
from gradio.context import Context
from gradio.events import Dependency
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.queue.roles import Actor, may_not_add
from backend.settings import settings
from backend.store import queries
from backend.store.tables import Job
from ui.format import esc, eta, href, share
from ui.keyboard import shortcuts
from ui.security.auth import current_user as current_user

VERSION = version("slimscope")
SILENT_EVENT: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
    "queue": False,
}
SEARCH = (
    '<div class="search" role="search"><input type="search" role="combobox" autocomplete="off" '
    'spellcheck="false" placeholder="Search  /" aria-label="Search runs and pages" '
    'aria-expanded="false" aria-controls="search-list" aria-autocomplete="list" id="frame-search">'
    '<ul id="search-list" role="listbox" aria-label="Found" hidden></ul></div>'
)
_NAMES = re.compile(r"[\w .:,/+\-@~()]{1,300}")
_pulse_view: ContextVar[gr.HTML] = ContextVar("pulse_view")


@dataclass(frozen=True)
class Page:
    """One page. `build` makes its content inside the frame.

    Attributes:
        path: the address, without a slash; "" is the first page.
        order: its place in the navigation.
        key: the letter that leads to it, pressed after "g".
        heading: False when the page writes its own single `<h1>`.
    """

    name: str
    path: str
    build: Callable[[], None]
    order: int
    key: str = ""
    in_navbar: bool = True
    heading: bool = True


@contextmanager
def frame(page: Page, pages: Sequence[Page]) -> Iterator[None]:
    """Header and status strip above, footer below what is built inside."""
    awake = "slimscope.header(element); slimscope.keyboard(element)"
    gr.HTML(_header(page, pages), elem_id="frame-header", js_on_load=awake)
    strip = gr.HTML(
        html_template='<p class="status-line" id="frame-status-line">&nbsp;</p>',
        js_on_load="slimscope.pulse(element, () => trigger('pulse'))",
        elem_id="frame-status",
    )
    token = _pulse_view.set(strip)
    with gr.Column(elem_id="main", elem_classes="page-body"):
        if page.heading:
            gr.HTML(f"<h1>{esc(page.name)}</h1>", elem_id="frame-title", js_on_load=None)
        yield
    _pulse_view.reset(token)
    gr.HTML(f"<footer>Slimscope {esc(VERSION)}</footer>", elem_id="frame-footer", js_on_load=None)


def _header(page: Page, pages: Sequence[Page]) -> str:
    links = "".join(
        f'<a href="{href(p.path)}"{_here(p, page)}>{esc(p.name)}</a>' for p in pages if p.in_navbar
    )
    return (
        '<button type="button" class="skip" id="frame-skip">Skip to content</button>'
        f'<header {_known(pages)}><a class="brand" href="./">Slimscope</a>'
        f'<nav id="frame-nav" aria-label="Pages">{links}</nav>{SEARCH}'
        '<button type="button" id="frame-keys" aria-label="Keys and help">?</button>'
        '<button type="button" id="frame-theme" aria-pressed="false">Dark</button></header>'
    )


def _known(pages: Sequence[Page]) -> str:
    """HTML attributes: what the search box and the keyboard know."""
    places = json.dumps([(p.name, href(p.path)) for p in pages if p.in_navbar])
    keys = json.dumps(shortcuts((p.key, p.name, p.path) for p in pages))
    return f'data-pages="{esc(places)}" data-keys="{esc(keys)}"'


def _here(link: Page, page: Page) -> str:
    return ' aria-current="page"' if link.path == page.path else ""


def on_load(
    fn: Callable[..., Any], inputs: Any = None, outputs: Any = None, **options: Any
) -> Dependency:
    """Runs `fn` when the current page is opened."""
    assert Context.root_block is not None, "call it while a page is built"
    return Context.root_block.load(fn, inputs, outputs, **{**SILENT_EVENT, **options})


def on_change(
    fn: Callable[..., Any], inputs: Any = None, outputs: Any = None, **options: Any
) -> Dependency:
    """Runs `fn` whenever something in the database has changed."""
    return _pulse_view.get().pulse(fn, inputs, outputs, **{**SILENT_EVENT, **options})


def live(
    fn: Callable[..., Any], inputs: Any = None, outputs: Any = None, **options: Any
) -> Dependency:
    """Runs `fn` when the page is opened and whenever something in the database has changed.

    Returns:
        The event of a change, to chain `.then` on.
    """
    on_load(fn, inputs, outputs, **options)
    return on_change(fn, inputs, outputs, **options)


def url_sync(after: Dependency, **fields: Any) -> Dependency:
    """After an event, writes the values of these components into the address, without a request:
    `url_sync(event, run=run_box, y=y_box)` gives `?run=sds-0042&y=log`. Empty values leave it."""
    names = ", ".join(f"v{i}" for i in range(len(fields)))
    pairs = ", ".join(f"{name}: v{i}" for i, name in enumerate(fields))
    return after.then(
        None, list(fields.values()), None, js=f"({names}) => slimscope.address({{{pairs}}})"
    )


def query(
    request: gr.Request, name: str, default: str = "", choices: Collection[str] | None = None
) -> str:
    """The value `name` has in the address; `default` if it is absent, odd, or not a choice."""
    value = str(dict(request.query_params or {}).get(name, default))
    if choices is not None:
        return value if value in choices else default
    return value if _NAMES.fullmatch(value) else default


def pulse(request: Request) -> Response:
    """What the open pages ask for: the cursor, whether something runs, and the status in words."""
    answer = dict(_pulse(settings().url, int(time.monotonic())))
    if (who := current_user(request)).role != "host":
        answer["html"] += guest_html(who)
    return JSONResponse(answer, headers={"Cache-Control": "no-store"})


def guest_html(who: Actor) -> str:
    """Tells a guest that he is one, and by which name; where a token makes a host, where to."""
    words = "You are looking on as a guest" if may_not_add(who) else f"You are {esc(who.name)}"
    link = ' <a href="slimscope/host">Become the host</a>' if settings().shared else ""
    return f'<span class="quiet">{words}{link}</span>'


@lru_cache(maxsize=1)
def _pulse(_url: str, _second: int) -> dict[str, Any]:
    """One look at the database a second, however many pages are open."""
    status = queries.status()
    return {
        "cursor": "|".join(map(str, queries.cursor())),
        "live": bool(status.live or status.queued),
        "html": status_html(status),
    }


def status_html(status: queries.QueueStatus) -> str:
    """The status strip: what runs, what waits, what needs a look."""
    parts = [_running(job) for job in status.live[:3]] or ["<span>Nothing is running</span>"]
    if len(status.live) > 3:
        parts.append(f"<span>{len(status.live) - 3} more running</span>")
    if status.queued:
        parts.append(f'<a href="jobs">{len(status.queued)} queued</a>')
    if status.queued and not status.supervisor_alive:
        parts.append('<span class="warn">The supervisor is not running</span>')
    if status.needs_attention:
        parts.append(f'<a href="jobs?state=failed">{status.needs_attention} failed or lost</a>')
    return "".join(parts)


def _running(job: Job) -> str:
    done = job.share
    bar = "" if done is None else f'<progress max="1" value="{done:.4f}"></progress>'
    left = "" if job.eta_s is None else f", {eta(job.eta_s)} left"
    words = esc(job.state) if done is None else f"{share(done, 0)}{left}"
    return f'<span><a href="{href("run", id=job.run)}">{esc(job.run)}</a>{bar} {words}</span>'
