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
from backend.queue import service, supervisor
from backend.store import queries
from backend.store.states import State
from jobs import submit
from jobs.kind import Kind, kinds
from jobs.record import kinds_record, plain, record, results, summary
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
        api.post(path)(function)
    for kind in kinds().values():
        _add_submit(api, kind)
    return api


# reading ------------------------------------------------------------------------------------------


def list_kinds() -> list[Answer]:
    """The kinds of run: title, presets, and the JSON schema of the config."""
    return kinds_record()


def list_runs(
    state: State | None = None,
    kind: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> list[Answer]:
    """Runs, the newest first."""
    return [summary(job) for job in queries.jobs([state] if state else None, kind, limit)]


def show_run(run: str) -> Answer:
    """Everything that is known of a run; the same as `slimscope show RUN --json`."""
    return record(run)


def run_results(run: str) -> list[Answer]:
    """The figures the run ended with."""
    return results(queries.job(run).id)


def run_curves(run: str) -> list[Answer]:
    """The points of the run's curves: name, step, value, at."""
    return plain(queries.curves(queries.job(run).id))


def run_tensors(run: str) -> list[Answer]:
    """The statistics of every tensor at every stage."""
    return plain(queries.tensor_table(queries.job(run).id))


# changing -----------------------------------------------------------------------------------------


def cancel_run(run: str, request: Request) -> Answer:
    """Asks a run to end; asked twice, it is killed. An ended run stays as it is."""
    service.cancel(run, current_user(request))
    supervisor.ensure()
    return summary(queries.job(run))


def run_next(run: str, request: Request) -> Answer:
    """Puts a waiting run before all others that wait."""
    return summary(service.run_next(run, current_user(request)))


def resume_run(run: str, request: Request) -> Answer:
    """Queues a failed, cancelled or lost run again, from its last checkpoint."""
    job = service.resume(run, current_user(request))
    supervisor.ensure()
    return summary(job)


def _add_submit(api: FastAPI, kind: Kind) -> None:
    """A door for one kind, so that the description of the API holds the schema of its config."""

    def submit_run(
        request: Request,
        config: Annotated[Answer, Body()] = NOTHING,
        name: Name = "",
        preset: Preset = "",
        priority: Priority = 0,
    ) -> Answer:
        values = {**kind.preset(preset), **config}
        job = submit.submit(kind.name, values, current_user(request), name=name, priority=priority)
        supervisor.ensure()
        return summary(job) | {"place": queries.status().position(job.id)}

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
    "/kinds": list_kinds,
    "/runs": list_runs,
    "/runs/{run}": show_run,
    "/runs/{run}/results": run_results,
    "/runs/{run}/curves": run_curves,
    "/runs/{run}/tensors": run_tensors,
}
CHANGE: dict[str, Callable[..., Any]] = {
    "/runs/{run}/cancel": cancel_run,
    "/runs/{run}/next": run_next,
    "/runs/{run}/resume": resume_run,
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
