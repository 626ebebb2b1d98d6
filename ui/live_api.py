"""Requests of the Workbench for live models: checks permissions and limits, and forwards requests
to the serving process (`jobs.serving.live`)."""

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backend.errors import ForbiddenError, SlimscopeError
from backend.models.facts import ModelFacts
from backend.queue import gate
from backend.queue.actor import Actor
from backend.queue.permissions import ASK, may_not_ask, require, require_asking, require_host
from jobs.limits import run_memory
from jobs.serving.client import answer_interrupted
from jobs.serving.live.requests import (
    PREFIX,
    SILENT_S,
    ExportBody,
    LiveBody,
    StateBody,
    TensorBody,
    live_memory,
    require_live,
)
from jobs.serving.openai_format import error_headers, read_fields
from ui.api_errors import error_response
from ui.openai_api import forward
from ui.security.auth import current_user

PATH = "/slimscope/workbench"
CHANGE = "change a model live"
_opened_by_hosts: set[str] = set()  # models, since the dashboard started


def routes() -> list[Route]:
    return [
        Route(f"{PATH}/live", _guarded(live), methods=["POST"]),
        Route(f"{PATH}/tensor", _guarded(tensor)),
        Route(f"{PATH}/export", _guarded(export), methods=["POST"]),
    ]


def live_parts(facts: ModelFacts, model: str, actor: Actor) -> dict[str, Any]:
    """Memory of a live model in `bytes`; if the user cannot change the model live, the reason in
    `why` and the remedy in `do`."""
    parts = {"why": "", "do": "", "bytes": sum(live_memory(facts).values())}
    try:
        _require_opened(actor, model)
        require_live(facts, run_memory("auto").when_idle)
    except SlimscopeError as error:
        parts |= {"why": f"{error.what} {error.why}".strip(), "do": error.do}
    return parts


def _require_opened(actor: Actor, *models: str) -> None:
    """Raise `ForbiddenError` for a guest who may not ask models, or if no host has opened these
    models."""
    require(actor, CHANGE, may_not_ask(actor))
    if actor.role != "host" and not _opened_by_hosts.issuperset(models):
        raise ForbiddenError(
            f"{actor.name} may not {CHANGE}.",
            "Guests may change only models that a host has opened on this page.",
            ASK,
        )


def _guarded(
    handler: Callable[[Request, Actor], Coroutine[Any, Any, Response]],
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def guarded(request: Request) -> Response:
        try:
            actor = current_user(request)
            if actor.role != "host":
                gate.previews.spend(actor)
            return await handler(request, actor)
        except SlimscopeError as error:
            response = error_response(error)
            response.headers.update(error_headers(error))
            return response

    return guarded


async def live(request: Request, actor: Actor) -> Response:
    """Stream the events of a state."""
    body = await run_in_threadpool(read_fields, LiveBody, await request.body())
    _require_opened(actor, *_models_in(body))
    require_asking(actor, body.character_count, body.tokens)
    return await _forward(request, actor, "answer", body)


def _models_in(body: StateBody) -> list[str]:
    """The models in a request."""
    return [body.model, *filter(None, [getattr(body, "against", "")])]


async def tensor(request: Request, actor: Actor) -> Response:
    """Respond with the histogram of one layer in a state."""
    body = read_fields(TensorBody, dict(request.query_params))
    _require_opened(actor, body.model)
    return await _forward(request, actor, "tensor", body)


async def export(request: Request, actor: Actor) -> Response:
    """Write a state as a model in the data folder."""
    require_host(actor, "export a model")
    return await _forward(request, actor, "export", read_fields(ExportBody, await request.body()))


async def _forward(request: Request, actor: Actor, name: str, body: StateBody) -> Response:
    error = answer_interrupted()
    broken_stream = {"event": "error", "what": error.what, "why": error.why, "do": error.do}

    def on_success() -> None:
        if actor.role == "host":
            _opened_by_hosts.update(_models_in(body))

    return await forward(
        request,
        actor,
        f"{PREFIX}/{name}",
        body.model_dump_json().encode(),
        broken_stream if isinstance(body, LiveBody) else None,
        on_success,
        None if isinstance(body, ExportBody) else SILENT_S,
    )
