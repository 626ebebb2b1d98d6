"""What a page remembers between events, kept by the browser."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr


def page_state() -> gr.JSON:
    """A value the browser keeps and sends along. A `gr.State` makes every page hold a connection
    (Gradio 6.31), and browsers open at most six to a server."""
    return gr.JSON(None, visible=False)


def as_kept(value: Any) -> Any:
    return json.loads(json.dumps(value))
