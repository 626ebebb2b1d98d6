"""HTML that is only shown: no style of Gradio's own, no script, and no gap where it is empty."""

from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.errors import SlimscopeError
from ui.widgets.html import WIDGETS, problem

EMPTY = Markup()


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
