"""What a page remembers between events, kept by the browser."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr


def page_state() -> gr.JSON:
    """A value the browser keeps and sends along. One `gr.State` on any page makes every page hold a
    connection open (Gradio 6.31), and a browser opens six to a server: its seventh tab would
    wait for ever."""
    return gr.JSON(None, visible=False)


def as_kept(value: Any) -> Any:
    """The value as it comes back from the browser: tuples are lists."""
    return json.loads(json.dumps(value))
