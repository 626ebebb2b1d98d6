"""The JSON API: what the pages show and do, for programs. It has no rules of its own: roles,
limits, validation and estimates are those of the queue; a run is added with its kind's config.
`ui.api_errors` says what an error looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse

from backend.queue import service, supervisor
from backend.store import queries
from backend.store.states import State
from jobs import submit
from jobs.kind import Kind, kinds
from jobs.record import kinds_record, plain, record, results, summary
from ui.api_errors import API_PATH, add_error_handlers
from ui.security.auth import current_user
from ui.templates import render

EMPTY: dict[str, Any] = {}

JsonObject = dict[str, Any]
Name = Annotated[str, Query(max_length=120, description="Label of the run.")]
Preset = Annotated[str, Query(description="Preset of the kind to start from.")]
Priority = Annotated[int, Query(ge=-1000, le=1000, description="Higher starts first.")]


def build() -> FastAPI:
    """The application that is mounted at `API_PATH`."""
    api = FastAPI(title="Slimscope", version="1", docs_url=None, redoc_url=None)
    add_error_handlers(api)
    for path, function in READ.items():
        api.get(path)(function)
    for path, function in CHANGE.items():
        api.post(path)(function)
    for kind in kinds().values():
        _add_submit(api, kind)
    return api


# reading ------------------------------------------------------------------------------------------


def list_kinds() -> list[JsonObject]:
    """All kinds of runs: title, presets, and the JSON schema of the config."""
    return kinds_record()


def list_runs(
    state: State | None = None,
    kind: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> list[JsonObject]:
    """Runs, the newest first."""
    return [summary(job) for job in queries.jobs([state] if state else None, kind, limit)]


def show_run(run: str) -> JsonObject:
    """The full record of a run, as `slimscope show RUN --json` prints it."""
    return record(run)


def run_results(run: str) -> list[JsonObject]:
    """The results of a run."""
    return results(queries.job(run).id)


def run_curves(run: str) -> list[JsonObject]:
    """The points of a run's curves: name, step, value, at."""
    return plain(queries.curves(queries.job(run).id))


def run_tensors(run: str) -> list[JsonObject]:
    """Weight statistics of every tensor at every stage."""
    return plain(queries.tensor_table(queries.job(run).id))


# changing -----------------------------------------------------------------------------------------


def cancel_run(run: str, request: Request) -> JsonObject:
    """Cancels a run. A second request kills it; a finished run stays as it is."""
    service.cancel(run, current_user(request))
    supervisor.ensure()
    return summary(queries.job(run))


def run_next(run: str, request: Request) -> JsonObject:
    """Moves a queued run to the front of the queue."""
    return summary(service.run_next(run, current_user(request)))


def resume_run(run: str, request: Request) -> JsonObject:
    """Queues a failed, cancelled or lost run again, from its last checkpoint."""
    job = service.resume(run, current_user(request))
    supervisor.ensure()
    return summary(job)


def _add_submit(api: FastAPI, kind: Kind) -> None:
    """Adds one POST route per kind, so that the API's description has the schema of its config."""

    def submit_run(
        request: Request,
        config: Annotated[JsonObject, Body()] = EMPTY,
        name: Name = "",
        preset: Preset = "",
        priority: Priority = 0,
    ) -> JsonObject:
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
        description=f"{kind.summary} The body holds the settings that differ from the defaults.",
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


# the page that describes it -----------------------------------------------------------------------


def docs(_: Request) -> HTMLResponse:
    """All requests, as a page that loads nothing."""
    requests = [
        {
            "line": f"{method.upper()} {path}",
            "about": f"{operation.get('summary', '')}. {operation.get('description', '')}",
            "parameters": _parameters(operation),
        }
        for path, methods in build().openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    return HTMLResponse(render("templates/api.html", path=API_PATH, requests=requests))


def _parameters(operation: JsonObject) -> list[str]:
    """Names of the parameters of a request: in the address, then in its body."""
    named = [p["name"] for p in operation.get("parameters", ())]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return [*named, *body.get("schema", {}).get("properties", {})]
