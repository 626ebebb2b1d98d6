"""The JSON API: what the pages show and do, for programs. It has no rules of its own: roles,
limits, validation and estimates are those of the queue; a run is added with its kind's config.

Errors are `{"what", "why", "do", "field"}`, as on the pages: 403 may not, 404 is not there, 409 not
in this state, 422 not accepted, 429 too often.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

from backend.errors import (
    ConfigError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RateLimitError,
    SlimscopeError,
)
from backend.queue.roles import Actor
from jobs import operations
from jobs.kind import Kind, kinds
from ui.format import esc
from ui.security.auth import bare_page, current_user

PATH = "/slimscope/api"
STATUS: tuple[tuple[type[SlimscopeError], int], ...] = (
    (ForbiddenError, 403),
    (NotFoundError, 404),
    (ConflictError, 409),
    (RateLimitError, 429),
    (SlimscopeError, 422),
)
NOTHING: dict[str, Any] = {}

Answer = dict[str, Any]
Name = Annotated[str, Query(max_length=120, description="A name of your own for the run.")]
Preset = Annotated[str, Query(description="Starts from a preset of the kind.")]
Priority = Annotated[int, Query(ge=-1000, le=1000, description="Higher starts earlier.")]


def build() -> FastAPI:
    """The application that is mounted at `PATH`."""
    api = FastAPI(title="Slimscope", version="1", docs_url=None, redoc_url=None)
    api.add_exception_handler(SlimscopeError, _refused)
    api.add_exception_handler(RequestValidationError, _malformed)
    api.add_exception_handler(HTTPException, _no_such_place)
    for path, function in READ.items():
        api.get(path)(function)
    for path, function in CHANGE.items():
        api.post(path)(_for_user(function))
    for kind in kinds().values():
        _add_submit(api, kind)
    return api


# requests -----------------------------------------------------------------------------------------


def _for_user(function: Callable[[str, Actor], Answer]) -> Callable[[str, Request], Answer]:
    """The request that performs an operation on a run for whoever sends it."""

    def endpoint(run: str, request: Request) -> Answer:
        return function(run, current_user(request))

    endpoint.__name__, endpoint.__doc__ = function.__name__, function.__doc__
    return endpoint


def _add_submit(api: FastAPI, kind: Kind) -> None:
    """One POST route per kind, so that the description of the API holds the schema of its
    config."""

    def submit_run(
        request: Request,
        config: Annotated[Answer, Body()] = NOTHING,
        name: Name = "",
        preset: Preset = "",
        priority: Priority = 0,
    ) -> Answer:
        user = current_user(request)
        return operations.submit_run(kind.name, config, user, preset, name, priority)

    schema = kind.config.model_json_schema()
    api.post(
        f"/submit/{kind.name}",
        status_code=201,
        operation_id=f"submit_{kind.name}",
        summary=f"Add a run: {kind.title}",
        description=f"{kind.summary} The body holds what differs from the defaults.",
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": schema}}}},
    )(submit_run)


READ: dict[str, Callable[..., Any]] = {
    "/kinds": operations.list_kinds,
    "/runs": operations.list_runs,
    "/runs/{run}": operations.show_run,
    "/runs/{run}/results": operations.run_results,
    "/runs/{run}/curves": operations.run_curves,
    "/runs/{run}/tensors": operations.run_tensors,
}
CHANGE: dict[str, Callable[[str, Actor], Answer]] = {
    "/runs/{run}/cancel": operations.cancel_run,
    "/runs/{run}/next": operations.run_next,
    "/runs/{run}/resume": operations.resume_run,
}


# errors -------------------------------------------------------------------------------------------


def told(error: SlimscopeError, status: int) -> JSONResponse:
    """An error as JSON, with what else is wrong with the same config."""
    content = _parts(error) | {"others": [_parts(other) for other in error.others]}
    return JSONResponse(content, status)


def _parts(error: SlimscopeError) -> dict[str, str | None]:
    return {"what": error.what, "why": error.why, "do": error.do, "field": error.field}


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SlimscopeError)
    return told(error, next(status for kind, status in STATUS if isinstance(error, kind)))


def _malformed(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = str(first["loc"][-1])
    return told(ConfigError(f"{field} was not accepted.", f"{first['msg']}.", "", field), 422)


def _no_such_place(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    missing = NotFoundError(f"{error.detail}.", "", f"{PATH}/openapi.json lists what there is.")
    return told(missing, error.status_code)


# the page that describes it -----------------------------------------------------------------------

PAGE = """<h1>API</h1><p>JSON below <code>{path}</code>, described for programs in
<a href="api/openapi.json">openapi.json</a>. A host shows <code>Authorization: Bearer TOKEN</code>.
<table><tr><th>Request<th>What it does<th>Values</tr>{rows}</table>"""


def docs(request: Request) -> HTMLResponse:
    """The requests there are, as a page that loads nothing."""
    described = build().openapi()["paths"]
    rows = [
        f"<tr><td><code>{method.upper()} {esc(path)}</code>"
        f"<td>{esc(one.get('summary', ''))}. {esc(one.get('description', ''))}"
        f"<td>{esc(', '.join(_values(one)))}</tr>"
        for path, methods in described.items()
        for method, one in methods.items()
    ]
    return bare_page("API", PAGE.format(path=PATH, rows="".join(rows)))


def _values(operation: Answer) -> list[str]:
    """What a request may say: in the address, then in its body."""
    named = [p["name"] for p in operation.get("parameters", ())]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return [*named, *body.get("schema", {}).get("properties", {})]
