"""Everything that relies on Gradio's internals, in one place. Checked with Gradio 6.31."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import gradio as gr
import uvicorn
from gradio import http_server, state_holder
from gradio.blocks import Block
from gradio.context import Context
from gradio.routes import App

POLL_SECONDS = 0.02


class SmallSession(state_holder.SessionState):
    """A session that starts without component descriptions (Gradio 6.31).

    For each page view Gradio describes all components of all pages anew, which takes 0.1 s and
    2.5 MB, and keeps that for the next 10,000 views. Only its deep links read it, and we offer
    none: our addresses hold what a page shows. Components that change are still remembered.
    """

    def __init__(self, blocks: Any) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))  # type: ignore[arg-type]

    def __setitem__(self, key: int, value: Any) -> None:
        """Stores a changed component under the id of the one it replaces (Gradio 6.31 sets none).
        With an id of its own it would be stored twice as soon as it is read, and the next one
        too, so a page that stays open all day would take ever more memory."""
        if isinstance(value, Block):
            value._id = key
        super().__setitem__(key, value)


def keep_sessions_small() -> None:
    """Replaces Gradio's session class in this process by `SmallSession` (Gradio 6.31)."""
    state_holder.SessionState = SmallSession  # type: ignore[misc]


@contextmanager
def web_app_once() -> Iterator[None]:
    """Pages that are added in this block get their web app from `queue`, and are described by
    `launch`. Gradio 6.31 does both for all pages so far at the end of each, five sixths of the time
    that building the pages took, although both are done again. For one thread at a time."""
    describe, create = gr.Blocks.get_config_file, App.create_app
    gr.Blocks.get_config_file = lambda _: {}  # type: ignore[method-assign, assignment, typeddict-item]
    App.create_app = staticmethod(lambda *_, **__: None)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        gr.Blocks.get_config_file = describe  # type: ignore[method-assign]
        App.create_app = staticmethod(create)  # type: ignore[method-assign]


def poll_less_often(app: gr.Blocks) -> None:
    """Sets how often the idle event queue looks for work (Gradio 6.31 has no option for it). The
    default of 1 ms takes 4 % of a core while nothing happens."""
    app._queue.sleep_when_free = POLL_SECONDS


def without_startup_check() -> dict[str, Any]:
    """Options of `Blocks.launch` that skip its request to its own address (Gradio 6.31). On a busy
    machine a first page of more than 3 s is mistaken for a missing network, and launch fails."""
    return {"_frontend": False}


def set_server_options(options: dict[str, Any]) -> None:
    """Sets options of the web server, `uvicorn.Config`, for every later `Blocks.launch`, which has
    names for few of them (Gradio 6.31)."""
    server = SimpleNamespace(Config=partial(uvicorn.Config, **options))
    http_server.uvicorn = server  # type: ignore[assignment, attr-defined]


def current_blocks() -> gr.Blocks:
    """The app whose page is being built. Gradio 6.31 has no public name for it, and `load` of a
    single page is registered there."""
    assert Context.root_block is not None, "call this while a page is built"
    return Context.root_block


def event_data(event: gr.EventData) -> dict[str, Any]:
    """What the browser sent with `trigger(name, data)`; unchecked. `gr.EventData` (6.31) offers
    the fields as attributes only, which fail where one is missing."""
    return event._data or {}
