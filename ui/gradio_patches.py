"""Everything that relies on Gradio's internals, in one place. Checked with Gradio 6.31."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import gradio as gr
import uvicorn
from gradio import http_server, processing_utils, route_utils, state_holder
from gradio.blocks import Block
from gradio.context import Context
from gradio.exceptions import Error
from gradio.routes import App
from starlette.exceptions import HTTPException
from starlette.requests import Request

from backend.errors import ConfigError, RateLimitError, SlimscopeError
from backend.queue.actor import reject
from backend.queue.gate import require_short_queue
from ui.security.auth import current_user

FUNCTIONS = 4096  # of all pages, at most
find_function = route_utils.get_fn
SESSION = re.compile(r"[\w-]{1,64}")  # Gradio's have eleven letters
SCALAR = (str, int, float, bool, type(None))
TYPES: tuple[tuple[type[Block], tuple[type, ...]], ...] = (  # of a component's value
    (gr.Checkbox, (bool, type(None))),
    (gr.Number, (int, float, type(None))),
    (gr.Slider, (int, float, type(None))),
    (gr.HTML, (*SCALAR, dict)),
    (gr.JSON, (*SCALAR, dict, list)),
)


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
    state_holder.SessionState = SmallSession  # type: ignore[misc]


@contextmanager
def web_app_once() -> Iterator[None]:
    """What is put together in this block is described, and gets its web app, by `launch`. Gradio
    6.31 does both at the end of each page, for all so far, and in `queue`: most of the time that
    building the pages took, although both are done again. For one thread at a time."""
    describe, create = gr.Blocks.get_config_file, App.create_app
    gr.Blocks.get_config_file = lambda _: {}  # type: ignore[method-assign, assignment, typeddict-item]
    App.create_app = staticmethod(lambda *_, **__: None)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        gr.Blocks.get_config_file = describe  # type: ignore[method-assign]
        App.create_app = staticmethod(create)  # type: ignore[method-assign]


def poll_less_often(app: gr.Blocks) -> None:
    """Lets the idle event queue look for work less often (Gradio 6.31 has no option): every 1 ms,
    the default, takes 4 % of a core."""
    app._queue.sleep_when_free = 0.02


def without_startup_check() -> dict[str, Any]:
    """Options of `Blocks.launch` that skip its request to its own address (Gradio 6.31), which on a
    busy machine times out after 3 s and fails the launch."""
    return {"_frontend": False}


def without_files() -> None:
    """Stops Gradio (6.31) from fetching files named in values, which any value could forge."""

    async def unchanged(data: Any, *_: Any, **__: Any) -> Any:
        return data

    processing_utils.async_move_files_to_cache = unchanged


def number_functions(app: gr.Blocks, version: str) -> None:
    """Numbers the functions of the pages by what they are. Gradio 6.31 counts from 0, and a page
    that stays open would call whatever has its numbers in the next version."""
    functions = [*app.default_config.fns.values()]
    told = [
        (
            f.name,
            [type(b) for b in f.inputs],
            [type(b) for b in f.outputs],
            [e for _, e in f.targets],
        )
        for f in functions
    ]
    digest = hashlib.sha256(repr([version, told]).encode()).digest()
    first = int.from_bytes(digest[:2]) * FUNCTIONS
    for function in functions:
        function._id += first
        function.cancels = [number + first for number in function.cancels]
        if function.trigger_after is not None:
            function.trigger_after += first
    app.default_config.fns = {function._id: function for function in functions}
    app.default_config.fn_id += first


def check_calls() -> None:
    """Rejects calls that no page makes before they reach a function; Gradio 6.31 answers them with
    a server error and a trace."""

    def found(blocks: gr.Blocks, api_name: str | None, body: Any) -> Any:
        try:
            if body.batched or not SESSION.fullmatch(body.session_hash or "none"):
                raise ConfigError("The call was not accepted.", "No page makes such a call.")
            try:
                function = find_function(blocks, api_name, body)
            except (KeyError, route_utils.FnIndexInferError):
                raise ConfigError(
                    "The call was not accepted.",
                    "The dashboard has changed since the page was opened.",
                    "Reload the page.",
                ) from None
            if function.fn is None:
                raise ConfigError("The call was not accepted.", "It is a function of the browser.")
            if len(body.data) < len(function.inputs):
                raise ConfigError(
                    "The call was not accepted.", f"{len(function.inputs)} values are due."
                )
            own: Any = blocks.state_holder[body.session_hash] if body.session_hash else {}
            for block, value in zip(function.inputs, body.data, strict=False):
                _check_value(own[block._id] if block._id in own else block, value)  # noqa: SIM401
            _check_event(body.event_data)
            return function
        except SlimscopeError as error:
            raise _refused(body.request, 422, error) from None

    route_utils.get_fn = found


def _check_value(block: Any, value: Any) -> None:
    several = isinstance(block, gr.Dropdown) and block.multiselect and isinstance(value, list)
    types = next((types for kind, types in TYPES if isinstance(block, kind)), SCALAR)
    try:
        if not all(isinstance(each, types) for each in (value if several else [value])):
            raise TypeError(f"a {type(value).__name__}")
        block.preprocess(value)
    except (Error, ValueError, TypeError) as error:
        raise ConfigError(
            "A value was not accepted.", f"{type(block).__name__}: {str(error)[:200]}."
        ) from None


def _check_event(data: Any) -> None:
    try:
        processing_utils.check_all_files_in_cache(data)
    except Error:
        raise ConfigError("The call was not accepted.", "No page sends files.") from None


def limit_events(app: gr.Blocks) -> None:
    """Bounds the queued events of a visitor and of an address; Gradio 6.31 those of all."""
    push = app._queue.push

    async def limited(body: Any, request: Request, username: str | None) -> Any:
        queued = [current_user(e.request) for e in app._queue.event_ids_to_events.values()]
        try:
            require_short_queue(current_user(request), queued)
        except RateLimitError as error:
            raise _refused(request, 429, error) from None
        return await push(body, request, username)

    app._queue.push = limited  # type: ignore[method-assign]


def _refused(request: Request, status: int, error: SlimscopeError) -> HTTPException:
    client = request.client.host if request.client else ""
    return HTTPException(status, str(reject(f"{client} {request.url.path}", error)))


def set_server_options(options: dict[str, Any]) -> None:
    """Sets options of `uvicorn.Config` that `Blocks.launch` (Gradio 6.31) does not offer."""
    server = SimpleNamespace(Config=partial(uvicorn.Config, **options))
    http_server.uvicorn = server  # type: ignore[assignment, attr-defined]


def current_blocks() -> gr.Blocks:
    """The app whose page is being built (no public name in Gradio 6.31)."""
    assert Context.root_block is not None, "call this while a page is built"
    return Context.root_block


def event_data(event: gr.EventData) -> dict[str, Any]:
    """Unchecked data of the browser's `trigger(name, data)`. Attributes of `gr.EventData` (6.31)
    fail where a field is missing."""
    return event._data if isinstance(event._data, dict) else {}
