"""The OpenAI API of the dashboard, `/v1`: checks permissions and limits, and forwards requests to
the serving process. Streams are relayed in chunks, as fast as the client reads."""

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
from backend.queue.gate import answer_slot, count_answer
from backend.queue.permissions import GUEST_TOKENS, require_asking
from jobs.serving.client import EventStream, answer_interrupted, run_until_disconnect, send_request
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
from ui.security.middleware import SLOT

CLIENT_GONE = Response(status_code=499)  # the client has closed the connection


def routes() -> list[Route]:
    return [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        *(Route(path, generate, methods=["POST"]) for path in ENDPOINTS),
        Route("/v1/{path:path}", unknown_path, methods=["GET", "POST", "PUT", "DELETE"]),
    ]


def models(_: Request) -> Response:
    """List the models that answer requests."""
    return JSONResponse(model_list([name for _, name in answering()]))


def model(request: Request) -> Response:
    """Describe one model."""
    requested = request.path_params["name"]
    for entry in model_list([name for _, name in answering()])["data"]:
        if entry["id"] == requested:
            return JSONResponse(entry)
    return openai_error(NotFoundError(f"There is no model {requested[:80]!r}.", "", "", "model"))


def unknown_path(request: Request) -> Response:
    """Respond to a path that the API does not have."""
    path = str(request.path_params["path"])[:80]
    return openai_error(
        NotFoundError(
            f"/v1/{path} does not exist.",
            "",
            f"Use {', '.join(ENDPOINTS)} or /v1/models.",
        )
    )


def openai_error(error: SlimscopeError, status: int = 0) -> Response:
    """An error response in OpenAI's format. `status`: HTTP status; 0: derived from the error."""
    http_status, content = error_body(error, status)
    return JSONResponse(content, http_status, error_headers(error))


async def generate(request: Request) -> Response:
    """Answer a prompt or a conversation."""
    actor = current_user(request)
    try:
        body = await run_in_threadpool(read_body, request.url.path, await request.body())
        if actor.role != "host":
            body.usual_tokens, body.nodes = GUEST_TOKENS, 0  # 0: draft tree of the measured size
        tokens = body.usual_tokens if body.limit is None else body.limit
        require_asking(actor, body.character_count, tokens * len(body.prompts) * body.n)
        count_answer(actor, spend=False)
        return await forward(
            request,
            actor,
            *endpoint_request(body),
            broken_stream=error_body(answer_interrupted())[1] if body.stream else None,
            on_success=lambda: count_answer(actor),
        )
    except SlimscopeError as error:
        return openai_error(error)


async def forward(
    request: Request,
    actor: Actor,
    path: str,
    content: bytes,
    broken_stream: JsonObject | None,
    on_success: Callable[[], None],
    silent_s: float | None = None,
) -> Response:
    """Send a request to the serving process and relay the response.

    Args:
        request: request of the client.
        actor: sender of the request.
        path: path of the serving process.
        content: body to send.
        broken_stream: last event of the stream if the serving process ends early; None if the
            response is not a stream.
        on_success: called when the serving process accepts the request.
        silent_s: see `send_request`.
    """
    async with AsyncExitStack() as stack:
        response = await stack.enter_async_context(
            serving_response(request, actor, path, content, silent_s)
        )
        if response is None:
            return CLIENT_GONE
        accepted = response.status_code == 200
        if broken_stream is not None and accepted:
            on_success()
            return EventStream(relay(response, broken_stream), stack.pop_all())
        try:
            response_body = await run_until_disconnect(request, response.aread())
        except httpx.TransportError as error:
            raise answer_interrupted() from error
        if accepted:
            on_success()
        if response_body is None:
            return CLIENT_GONE
        headers = {
            name: value
            for name, value in response.headers.items()
            if name in ("content-type", "retry-after")
        }
        return Response(response_body, response.status_code, headers)


def endpoint_request(body: Body) -> tuple[str, bytes]:
    """The endpoint's path and the content of a request to the serving process."""
    path = next(path for path, kind in ENDPOINTS.items() if isinstance(body, kind))
    return path, body.model_dump_json(exclude_unset=True).encode()


@asynccontextmanager
async def serving_response(
    request: Request, actor: Actor, path: str, content: bytes, silent_s: float | None = None
) -> AsyncIterator[httpx.Response | None]:
    """Send a request to the serving process; yield its response as soon as the headers arrive, or
    None if the client has closed the connection.

    The request gives up its slot of `backend.queue.gate`: generating the answer uses no time of
    this process. `silent_s`: see `send_request`.

    Raises:
        OverloadError: too many active answers of the visitor, of its address or in total.
        SlimscopeError: the serving process does not respond.
    """
    if slot := request.scope.get(SLOT):
        await slot.aclose()
    async with answer_slot(actor), AsyncExitStack() as stack:
        opening = stack.enter_async_context(send_request(path, content, actor, silent_s))
        yield await run_until_disconnect(request, opening)


async def relay(response: httpx.Response, broken_stream: JsonObject) -> AsyncIterator[bytes]:
    """Yield the chunks of a stream, and `broken_stream` if the serving process ends early."""
    try:
        async for chunk in response.aiter_raw():
            yield chunk
    except httpx.TransportError:
        yield event(broken_stream)


# transcripts for the playground -------------------------------------------------------------------


async def transcript_rows(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the transcript rows and wait notices of a stream with `details`, for one choice. The
    last row has an `end`, also if the answer failed."""
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
