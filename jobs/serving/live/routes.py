"""Live models over HTTP, for the dashboard, which knows who asks (`ui.workbench_api`)."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, aclosing
from functools import partial
from typing import TypeVar
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from backend.errors import SlimscopeError
from backend.live.measurements import layer_histogram
from backend.live.model import DENSE
from jobs.serving.client import PERSON, ROLE, EventStream
from jobs.serving.live.answering import LiveAnswering
from jobs.serving.live.export import write_live
from jobs.serving.live.models import BrowserState, LivePool, OpenedModel
from jobs.serving.live.requests import PREFIX, ExportBody, LiveBody, TensorBody
from jobs.serving.openai_format import error_body, error_headers, event, read_fields

AtWork = Callable[[], AbstractContextManager[None]]
B = TypeVar("B", TensorBody, ExportBody)


class LiveRoutes:
    """The routes of a pool; `at_work`: counts a request."""

    def __init__(self, pool: LivePool, at_work: AtWork) -> None:
        self.pool, self._at_work = pool, at_work
        self.routes = [
            Route(f"{PREFIX}/answer", self.answer, methods=["POST"]),
            Route(f"{PREFIX}/tensor", partial(self._done, TensorBody, _tensor), methods=["POST"]),
            Route(f"{PREFIX}/export", partial(self._done, ExportBody, _exported), methods=["POST"]),
        ]

    async def answer(self, request: Request) -> Response:
        """The events of a state."""
        try:
            body = read_fields(LiveBody, await request.body())
        except SlimscopeError as error:
            return refused(error)
        person, guest = _person(request)

        async def events() -> AsyncGenerator[bytes]:
            with self._at_work():
                async with aclosing(LiveAnswering(body, person, guest, self.pool).events()) as told:
                    async for happened in told:
                        yield event(happened)

        stream, opened = events(), AsyncExitStack()
        opened.push_async_callback(stream.aclose)
        return EventStream(stream, opened)

    async def _done(
        self,
        kind: type[B],
        work: Callable[[B, OpenedModel, BrowserState], Response],
        request: Request,
    ) -> Response:
        """What a short request comes to, in a thread."""
        person, guest = _person(request)

        def done(body: B) -> Response:
            with (
                self.pool.using(body.model, lambda *_: None) as opened,
                self.pool.state(opened, person, body.browser) as state,
            ):
                self.pool.step(guest, lambda *_: None, lambda: None)
                return work(body, opened, state)

        try:
            body = read_fields(kind, await request.body())
            with self._at_work():
                return await run_in_threadpool(done, body)
        except SlimscopeError as error:
            return refused(error)


def _tensor(body: TensorBody, opened: OpenedModel, state: BrowserState) -> Response:
    """Histogram of a layer as it is in a state. `tails`: all weights, exact zeros, those below and
    above the bins."""
    dense, live = opened.dense, state.live
    asked = opened.asked(body.state)
    form = asked.formats.get(body.name) or dense.refuse(body.name, DENSE)  # which refuses the name
    with dense.lock:
        now = live.formats[body.name], live.pruner, live.quantizer
        same = now == (form, asked.pruner, asked.quantizer)
        made = live.made[body.name] if same else "instant"
        weights = (
            live.stored(body.name)
            if same
            else dense.made(body.name, form, dense.score_of(asked.pruner))
        )
        counts, *outside = layer_histogram(dense, body.name, weights)
    tails = [dense.weight(body.name).numel(), *outside]
    return JSONResponse({"made": made, "counts": counts.tolist(), "tails": tails})


def _exported(body: ExportBody, opened: OpenedModel, state: BrowserState) -> Response:
    asked, live = opened.asked(body.state), state.live
    with state.changing:
        if (asked.formats, asked.pruner, asked.quantizer) != (
            live.formats,
            live.pruner,
            live.quantizer,
        ):
            live.apply(asked.formats, asked.pruner, asked.quantizer)
        return JSONResponse(write_live(body, opened, live))


def _person(request: Request) -> tuple[str, bool]:
    return unquote(request.headers.get(PERSON, "")), request.headers.get(ROLE) != "host"


def refused(error: SlimscopeError) -> Response:
    """An error as the JSON API reports it."""
    parts = {"what": error.what, "why": error.why, "do": error.do, "field": error.field}
    status, _ = error_body(error)
    return JSONResponse({**parts, "others": []}, status, error_headers(error))
