"""Small pieces of HTML that several pages show: the macros of `templates/widgets.html`; HTML that
is only shown, without a style of Gradio's own, a script, or a gap where it is empty; downloads; and
panels with buttons, whose state is the address.

In such a panel `data-view` writes its JSON into the address, `data-toggle="NAME"` adds its
`data-value` to the list NAME of the address or removes it; both raise `view`. `data-do` with
`data-run` raises `act`, after a confirmation (`data-ask`) or a text (`data-prompt`). `data-copy`
copies its text, or the address of the page."""

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from ui.format import size
from ui.frame import PRIVATE_EVENT, SILENT_EVENT
from ui.templates import fragments

WIDGETS = fragments("templates/widgets.html")
badge, time_tag, problem = WIDGETS.badge, WIDGETS.time_tag, WIDGETS.problem
skeleton, empty = WIDGETS.skeleton, WIDGETS.empty
EMPTY = Markup()
# Gradio finds the events of a component by the names quoted here
SCRIPT = "slimscope.htmlPanel(element, () => trigger('view', {}), (data) => trigger('act', data))"
LATEST: dict[str, Any] = {**SILENT_EVENT, "trigger_mode": "always_last"}  # options of such readers
AT_MOST = 16_000_000  # bytes


def plain(value: Markup = EMPTY, **options: Any) -> gr.HTML:
    return gr.HTML(value, js_on_load=None, apply_default_css=False, **options)


def notice(elem_id: str) -> gr.HTML:
    """A place for what was done or went wrong; takes no room while it is empty."""
    return plain(visible=False, elem_id=elem_id)


def show_html(html: Markup = EMPTY) -> Any:
    return gr.update(value=html, visible=bool(html))


def show_success(message: str) -> Any:
    return show_html(WIDGETS.success(message))


def show_error(error: SlimscopeError) -> Any:
    return show_html(problem(error))


class HtmlPanel(gr.HTML):
    """HTML with the events `view` and `act`; `gradio_patches.event_data` of `act` is the browser's
    unchecked `{"do", "run", "file", "text"}`."""

    def __init__(self, value: Markup = EMPTY, **options: Any) -> None:
        super().__init__(value, js_on_load=SCRIPT, apply_default_css=False, **options)

    def on_action(self, handler: Callable[..., Any], outputs: Any, redraw: tuple[Any, ...]) -> None:
        self.act(handler, None, outputs, **PRIVATE_EVENT).then(*redraw, **SILENT_EVENT)


class Download(gr.HTML):
    """Hands a file to the browser without storing it where other visitors could reach it.
    Invisible; a handler that returns `file_payload(...)` to it starts a download."""

    def __init__(self, **options: Any) -> None:  # Gradio makes it anew at each update
        script = "slimscope.download(props, watch)"
        super().__init__(None, html_template="", js_on_load=script, elem_classes="saver", **options)


def file_payload(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "data": base64.b64encode(data).decode(), "at": time.time_ns()}


def small_file(file: Path) -> dict[str, Any]:
    """File as a download. Raises `NotFoundError` if too large."""
    if file.stat().st_size > AT_MOST:
        raise NotFoundError(
            f"{file.name} is {size(file.stat().st_size)}.",
            f"Files of at most {size(AT_MOST)} can be downloaded.",
            "Copy it from the artifact folder.",
        )
    return file_payload(file.name, file.read_bytes())
