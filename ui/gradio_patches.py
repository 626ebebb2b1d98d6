"""All patches of Gradio internals. Tested with Gradio 6.31."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import uvicorn
from gradio import http_server, processing_utils, route_utils, routes, state_holder
from gradio.blocks import Block
from gradio.context import Context
from gradio.exceptions import Error
from gradio.route_utils import BUILD_PATH_LIB
from gradio.routes import App
from jinja2 import ChoiceLoader, DictLoader
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backend.errors import ConfigError, RateLimitError, SlimscopeError
from backend.queue.actor import reject
from backend.queue.gate import require_short_queue
from ui.security.auth import current_user

MAX_FUNCTIONS = 4096  # event functions of all pages
gradio_get_fn = route_utils.get_fn
SESSION_HASH = re.compile(r"[\w-]{1,64}")  # Gradio's have eleven characters
LOADER_LOOPS = (  # of minified functions that call themselves again and again
    re.compile(
        r"(function (\w+)\(\)\{\w+\(\(\)=>\{[^{}]{0,80}performance\.now[^{}]{0,40}),\w+&&\2\(\)\}"
    ),
    re.compile(r"(async function (\w+)\(\)\{)await \w+\(\),\w+\(\w+\)\|\|\2\(\)\}"),
)
LOADER_HEADERS = {"Cache-Control": "public, max-age=3600"}
SCALAR = (str, int, float, bool, type(None))
VALUE_TYPES: tuple[tuple[type[Block], tuple[type, ...]], ...] = (  # component -> value types
    (gr.Checkbox, (bool, type(None))),
    (gr.Number, (int, float, type(None))),
    (gr.Slider, (int, float, type(None))),
    (gr.HTML, (*SCALAR, dict)),
    (gr.JSON, (*SCALAR, dict, list)),
)


class SmallSession(state_holder.SessionState):
    """Session state without component configs.

    For each page view Gradio 6.31 serializes all components of all pages (0.1 s, 2.5 MB) and keeps
    the result for 10,000 views. Only its deep links read it, which Slimscope does not use: a page's
    URL contains its state. Components that change are still stored.
    """

    def __init__(self, blocks: Any) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))  # type: ignore[arg-type]

    def __setitem__(self, key: int, value: Any) -> None:
        """Store a changed component under the id of the one it replaces. With a new id, as Gradio
        6.31 assigns, every read would store it twice, and memory would grow while a page is
        open."""
        if isinstance(value, Block):
            value._id = key
        super().__setitem__(key, value)


def keep_sessions_small() -> None:
    state_holder.SessionState = SmallSession  # type: ignore[misc]


@contextmanager
def web_app_once() -> Iterator[None]:
    """Build pages without intermediate configs and web apps; `launch` creates both. Gradio 6.31
    creates them after each page, for all pages so far, and in `queue`, which was most of the time
    of building the pages. Not thread-safe."""
    get_config, create_app = gr.Blocks.get_config_file, App.create_app
    gr.Blocks.get_config_file = lambda _: {}  # type: ignore[method-assign, assignment, typeddict-item]
    App.create_app = staticmethod(lambda *_, **__: None)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        gr.Blocks.get_config_file = get_config  # type: ignore[method-assign]
        App.create_app = staticmethod(create_app)  # type: ignore[method-assign]


def poll_less_often(app: gr.Blocks) -> None:
    """Make the idle event queue poll less often. The default of 1 ms takes 4 % of a core, and
    Gradio 6.31 has no option for it."""
    app._queue.sleep_when_free = 0.02


def without_startup_check() -> dict[str, Any]:
    """Return options of `Blocks.launch` that skip its request to its own URL (Gradio 6.31). On a
    busy machine that request times out after 3 s and fails the launch."""
    return {"_frontend": False}


def loader_routes() -> list[Route]:
    """Serve the script of the loading indicator without its endless loops. Gradio 6.31 removes the
    indicator of a page that has started, but not its timer and animation: they make the browser
    draw sixty times a second for as long as the page is open, which takes 4 % of a core."""
    routes = []
    for file in Path(BUILD_PATH_LIB).glob("statustracker-*.js"):
        script = file.read_text(encoding="utf-8")
        for loop in LOADER_LOOPS:
            script = loop.sub(r"\1}", script)
        answer = Response(script, media_type="text/javascript", headers=LOADER_HEADERS)
        routes.append(Route(f"/assets/{file.name}", answer, methods=["GET"]))
    return routes


def without_files() -> None:
    """Stop Gradio 6.31 from fetching files that values name: any client can send such a value."""

    async def unchanged(data: Any, *_: Any, **__: Any) -> Any:
        return data

    processing_utils.async_move_files_to_cache = unchanged


def name_pages(title: str) -> None:
    """Give the name of the app to previews of links. Gradio 6.31 writes its own into every page."""
    environment, name = routes.templates.env, "frontend/index.html"
    assert environment.loader is not None, "Gradio loads its pages from files"
    source = environment.loader.get_source(environment, name)[0]
    renamed = DictLoader({name: source.replace('content="Gradio"', f'content="{title}"')})
    environment.loader = ChoiceLoader([renamed, environment.loader])


def number_functions(app: gr.Blocks, version: str) -> None:
    """Number event functions by content. Gradio 6.31 counts from 0, so a page left open during an
    upgrade would call whichever function has the same number in the new version."""
    functions = [*app.default_config.fns.values()]
    signatures = [
        (
            f.name,
            [type(b) for b in f.inputs],
            [type(b) for b in f.outputs],
            [e for _, e in f.targets],
        )
        for f in functions
    ]
    digest = hashlib.sha256(repr([version, signatures]).encode()).digest()
    offset = int.from_bytes(digest[:2]) * MAX_FUNCTIONS
    for function in functions:
        function._id += offset
        function.cancels = [number + offset for number in function.cancels]
        if function.trigger_after is not None:
            function.trigger_after += offset
    app.default_config.fns = {function._id: function for function in functions}
    app.default_config.fn_id += offset


def check_calls() -> None:
    """Reject calls that no page makes before they reach a function. Gradio 6.31 answers them with a
    server error and a traceback."""

    def get_checked_fn(blocks: gr.Blocks, api_name: str | None, body: Any) -> Any:
        try:
            if body.batched or not SESSION_HASH.fullmatch(body.session_hash or "none"):
                raise ConfigError("The call was not accepted.", "No page makes such a call.")
            try:
                function = gradio_get_fn(blocks, api_name, body)
            except (KeyError, route_utils.FnIndexInferError):
                raise ConfigError(
                    "The call was not accepted.",
                    "The dashboard has changed since the page was opened.",
                    "Reload the page.",
                ) from None
            if function.fn is None:
                raise ConfigError(
                    "The call was not accepted.", "This function runs in the browser."
                )
            if len(body.data) < len(function.inputs):
                raise ConfigError(
                    "The call was not accepted.",
                    f"The function takes {len(function.inputs)} values.",
                )
            session: Any = blocks.state_holder[body.session_hash] if body.session_hash else {}
            for block, value in zip(function.inputs, body.data, strict=False):
                current = session[block._id] if block._id in session else block  # noqa: SIM401
                _check_value(current, value)
            _check_event(body.event_data)
            return function
        except SlimscopeError as error:
            raise _http_error(body.request, 422, error) from None

    route_utils.get_fn = get_checked_fn


def _check_value(block: Any, value: Any) -> None:
    is_list = isinstance(block, gr.Dropdown) and block.multiselect and isinstance(value, list)
    types = next((types for kind, types in VALUE_TYPES if isinstance(block, kind)), SCALAR)
    try:
        if not all(isinstance(item, types) for item in (value if is_list else [value])):
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
    """Limit the queued events per visitor and per address. Gradio 6.31 only limits the total."""
    push = app._queue.push

    async def limited_push(body: Any, request: Request, username: str | None) -> Any:
        queued = [current_user(e.request) for e in app._queue.event_ids_to_events.values()]
        try:
            require_short_queue(current_user(request), queued)
        except RateLimitError as error:
            raise _http_error(request, 429, error) from None
        return await push(body, request, username)

    app._queue.push = limited_push  # type: ignore[method-assign]


def _http_error(request: Request, status: int, error: SlimscopeError) -> HTTPException:
    client = request.client.host if request.client else ""
    return HTTPException(status, str(reject(f"{client} {request.url.path}", error)))


def set_server_options(options: dict[str, Any]) -> None:
    """Set options of `uvicorn.Config` that `Blocks.launch` of Gradio 6.31 does not offer."""
    server = SimpleNamespace(Config=partial(uvicorn.Config, **options))
    http_server.uvicorn = server  # type: ignore[assignment, attr-defined]


def current_blocks() -> gr.Blocks:
    """Return the app whose page is being built. Gradio 6.31 has no public name for it."""
    assert Context.root_block is not None, "call this only while a page is being built"
    return Context.root_block


def event_data(event: gr.EventData) -> dict[str, Any]:
    """Return the unvalidated data of the browser's `trigger(name, data)`. Attribute access on
    `gr.EventData` of Gradio 6.31 fails if a field is missing."""
    return event._data if isinstance(event._data, dict) else {}
