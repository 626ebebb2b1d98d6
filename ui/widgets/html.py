"""HTML widgets of several pages: macros of `templates/widgets.html`, plain HTML, downloads, and
panels with buttons.

The state of a panel is in the address. A button with `data-view` writes its JSON into the address;
`data-toggle="NAME"` adds its `data-value` to the list NAME of the address, or removes it; both
raise the event `view`. `data-do` with `data-run` raises the event `act`, after a confirmation
(`data-ask`) or the input of a text (`data-prompt`). `data-copy` copies its text, or the address of
the page."""

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
# Gradio finds the events of a component by the quoted names in this script
SCRIPT = "slimscope.htmlPanel(element, () => trigger('view', {}), (data) => trigger('act', data))"
# event options for handlers that only read: of several quick changes only the last one counts
LATEST: dict[str, Any] = {**SILENT_EVENT, "trigger_mode": "always_last"}
AT_MOST = 16_000_000


def plain(value: Markup = EMPTY, **options: Any) -> gr.HTML:
    """HTML without Gradio's style and without a script."""
    return gr.HTML(value, js_on_load=None, apply_default_css=False, **options)


def notice(elem_id: str) -> gr.HTML:
    """An empty notice for a success or an error; it takes no room while it is empty."""
    return plain(visible=False, elem_id=elem_id)


def show_html(html: Markup = EMPTY) -> Any:
    """Update of a notice; without HTML it is hidden."""
    return gr.update(value=html, visible=bool(html))


def show_success(message: str) -> Any:
    """Update of a notice that reports a success."""
    return show_html(WIDGETS.success(message))


def show_error(error: SlimscopeError) -> Any:
    """Update of a notice that reports an error."""
    return show_html(problem(error))


class HtmlPanel(gr.HTML):
    """HTML with the events `view` and `act`.

    `gradio_patches.event_data` of `act` is the browser's unchecked `{"do", "run", "file",
    "text"}`."""

    def __init__(self, value: Markup = EMPTY, **options: Any) -> None:
        super().__init__(value, js_on_load=SCRIPT, apply_default_css=False, **options)

    def on_action(self, handler: Callable[..., Any], outputs: Any, redraw: tuple[Any, ...]) -> None:
        """Call a handler on `act`, then redraw the panel with `redraw`, arguments of an event."""
        self.act(handler, None, outputs, **PRIVATE_EVENT).then(*redraw, **SILENT_EVENT)


class Download(gr.HTML):
    """An invisible component that sends a file to the browser.

    A handler that returns `file_payload(...)` to it starts a download. The file is not stored on
    the server, where other visitors could reach it."""

    def __init__(self, **options: Any) -> None:  # Gradio constructs it again at each update
        script = "slimscope.download(props, watch)"
        super().__init__(None, html_template="", js_on_load=script, elem_classes="saver", **options)


def file_payload(name: str, data: bytes) -> dict[str, Any]:
    """The value of a `Download` that starts the download of `data`."""
    return {"name": name, "data": base64.b64encode(data).decode(), "at": time.time_ns()}


def small_file(file: Path) -> dict[str, Any]:
    """The payload of a file.

    Raises:
        NotFoundError: the file is too large.
    """
    if file.stat().st_size > AT_MOST:
        raise NotFoundError(
            f"{file.name} is {size(file.stat().st_size)}.",
            f"Files of at most {size(AT_MOST)} can be downloaded.",
            "Copy the file from the artifact folder.",
        )
    return file_payload(file.name, file.read_bytes())
