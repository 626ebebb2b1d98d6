"""HTML with buttons, whose state is the address. `data-view` writes its JSON into the address,
`data-toggle="NAME"` adds its `data-value` to the list NAME of the address or removes it; both raise
`view`. `data-do` with `data-run` raises `act`, after a confirmation (`data-ask`) or a text
(`data-prompt`). `data-copy` copies its text, or the address of the page."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from markupsafe import Markup

from ui.frame import PRIVATE_EVENT, SILENT_EVENT
from ui.widgets.notice import EMPTY

# Gradio finds the events of a component by the names quoted here
SCRIPT = "slimscope.htmlPanel(element, () => trigger('view', {}), (data) => trigger('act', data))"
LATEST: dict[str, Any] = {**SILENT_EVENT, "trigger_mode": "always_last"}  # options of such readers


class HtmlPanel(gr.HTML):
    """HTML with the events `view` and `act`; `gradio_patches.event_data` of `act` is the browser's
    unchecked `{"do", "run", "file", "text"}`."""

    def __init__(self, value: Markup = EMPTY, **options: Any) -> None:
        super().__init__(value, js_on_load=SCRIPT, apply_default_css=False, **options)

    def on_action(self, handler: Callable[..., Any], outputs: Any, redraw: tuple[Any, ...]) -> None:
        self.act(handler, None, outputs, **PRIVATE_EVENT).then(*redraw, **SILENT_EVENT)
