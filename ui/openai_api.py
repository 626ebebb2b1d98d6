"""The OpenAI API of the dashboard, `/v1`: who may ask, how much, and the way to the process that
answers. What streams passes through piece by piece, as fast as the client reads."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.actor import Actor
from backend.queue.gate import count_answer, place_of_answer
from backend.queue.permissions import GUEST_TOKENS, require_asking
from jobs.serving.client import EventStream, answer_interrupted, send_request, unless_gone
from jobs.serving.openai_format import (
    ENDPOINTS,
    Body,
    JsonObject,
    error_body,
    error_headers,
    event,
    model_list,
    read_body,
)
from ui.runs.choices import answering
from ui.security.auth import current_user
from ui.security.middleware import TURN

GONE = Response(status_code=499)  # nobody reads it


def routes() -> list[Route]:
    return [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        *(Route(path, generate, methods=["POST"]) for path in ENDPOINTS),
        Route("/v1/{path:path}", nothing, methods=["GET", "POST", "PUT", "DELETE"]),
    ]


def models(_: Request) -> Response:
    return JSONResponse(model_list([name for _, name in answering()]))


def model(request: Request) -> Response:
    name = request.path_params["name"]
    found = [each for each in model_list([n for _, n in answering()])["data"] if each["id"] == name]
    if found:
        return JSONResponse(found[0])
    return failure(NotFoundError(f"There is no model {name[:80]!r}.", "", "", "model"))


def nothing(request: Request) -> Response:
    path = str(request.path_params["path"])[:80]
    return failure(
        NotFoundError(
            f"/v1/{path} is not served here.",
            "",
            f"There are {', '.join(ENDPOINTS)} and /v1/models.",
        )
    )


def failure(error: SlimscopeError, status: int = 0) -> Response:
    """An error in the shape of the API."""
    found, content = error_body(error, status)
    return JSONResponse(content, found, error_headers(error))


async def generate(request: Request) -> Response:
    actor = current_user(request)
    try:
        body = await run_in_threadpool(read_body, request.url.path, await request.body())
        if actor.role != "host":
            body.usual_tokens, body.nodes = GUEST_TOKENS, 0  # a tree is measured, not chosen
        tokens = body.usual_tokens if body.limit is None else body.limit
        require_asking(actor, body.character_count, tokens * len(body.prompts) * body.n)
        count_answer(actor, spend=False)
        last = error_body(answer_interrupted())[1] if body.stream else None
        return await forwarded(
            request, actor, *sendable(body), last=last, begun=lambda: count_answer(actor)
        )
    except SlimscopeError as error:
        return failure(error)


async def forwarded(
    request: Request,
    actor: Actor,
    path: str,
    content: bytes,
    last: JsonObject | None,
    begun: Callable[[], None],
    silent_s: float | None = None,
) -> Response:
    """The response of the process, passed on as it comes.

    Args:
        last: ends a stream where the process ends meanwhile; None where it is no stream.
        begun: called when there is an answer, and no refusal.
        silent_s: see `send_request`.
    """
    async with AsyncExitStack() as opened:
        way = answered(request, actor, path, content, silent_s)
        response = await opened.enter_async_context(way)
        if response is None:
            return GONE
        kept = {n: v for n, v in response.headers.items() if n in ("content-type", "retry-after")}
        streams, whole = last is not None and response.status_code == 200, None
        if not streams:
            try:
                whole = await unless_gone(request, response.aread())
            except httpx.TransportError as error:
                raise answer_interrupted() from error
        if response.status_code == 200:
            begun()
        if last is not None and streams:
            return EventStream(passed_on(response, last), opened.pop_all())
        return GONE if whole is None else Response(whole, response.status_code, kept)


def sendable(body: Body) -> tuple[str, bytes]:
    """Where a request is sent, and its content."""
    path = next(path for path, kind in ENDPOINTS.items() if isinstance(body, kind))
    return path, body.model_dump_json(exclude_unset=True).encode()


@asynccontextmanager
async def answered(
    request: Request, actor: Actor, path: str, content: bytes, silent_s: float | None = None
) -> AsyncIterator[httpx.Response | None]:
    """The response of the process, of which the headers have come; None where the client has gone
    meanwhile. Its turn among the requests at work is over: the answer takes none of this process.
    `silent_s`: see `send_request`.

    Raises:
        OverloadError: the visitor, its address or all together have as many answers as they may.
        SlimscopeError: the process does not answer.
    """
    if turn := request.scope.get(TURN):
        await turn.aclose()
    async with place_of_answer(actor), AsyncExitStack() as opened:
        begun = opened.enter_async_context(send_request(path, content, actor, silent_s))
        yield await unless_gone(request, begun)


async def passed_on(response: httpx.Response, last: JsonObject) -> AsyncIterator[bytes]:
    """What comes, and `last` where the process ends meanwhile."""
    try:
        async for piece in response.aiter_raw():
            yield piece
    except httpx.TransportError:
        yield event(last)


# what the playground reads ------------------------------------------------------------------------


async def rows(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The rows of the transcript in a stream with `details` of one choice, and what it waits for;
    the last has an `end`, also where it failed."""
    try:
        async for line in response.aiter_lines():
            if line.startswith(": {"):
                yield json.loads(line[2:])
            elif line.startswith("data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    yield {"end": "error", "rest": "", "error": chunk["error"]["message"]}
                    return
                if "slimscope" in chunk:
                    yield chunk["slimscope"]
    except httpx.TransportError:
        yield {"end": "error", "rest": "", "error": str(answer_interrupted())}
