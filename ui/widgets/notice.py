"""HTML that is only shown: no style of Gradio's own, no script, and no gap where it is empty."""

from __future__ import annotations

from typing import Any

import gradio as gr

from backend.errors import SlimscopeError
from ui.format import problem


def plain(value: str = "", **options: Any) -> gr.HTML:
    """A place for HTML."""
    return gr.HTML(value, js_on_load=None, apply_default_css=False, **options)


def notice(elem_id: str) -> gr.HTML:
    """A place for what was done or went wrong; takes no room before something is said."""
    return plain(visible=False, elem_id=elem_id)


def said(html: str) -> Any:
    """Update of a notice; nothing said hides it."""
    return gr.update(value=html, visible=bool(html))


def done(html: str) -> Any:
    """Update of a notice: what was done."""
    return said(f'<p class="done" role="status">{html}</p>')


def failed(error: SlimscopeError) -> Any:
    """Update of a notice: what went wrong."""
    return said(problem(error))
