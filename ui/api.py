"""The JSON API: what the pages show and do, for programs. It has no rules of its own: roles,
limits, validation and estimates are those of the queue; a run is added with its kind's config.
`ui.api_errors` says what an error looks like.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse

from backend.queue.actor import Actor
from backend.queue.permissions import require_host
from backend.queue.service import MAX_PRIORITY
from jobs import operations
from jobs.kind import Kind, kinds
from ui.api_errors import API_PATH, RESPONSES, add_error_handlers
from ui.security.auth import current_user
from ui.static import once
from ui.templates import render

EMPTY: dict[str, Any] = {}

JsonObject = dict[str, Any]
Name = Annotated[str, Query(max_length=120, description="Label of the run.")]
Preset = Annotated[str, Query(description="Preset of the kind to start from.")]
Priority = Annotated[
    int, Query(ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="Higher starts first.")
]
Choice = Annotated[int, Query(description="The better answer, from 1; 0: a tie; -1: all bad.")]


def build() -> FastAPI:
    """The application that is mounted at `API_PATH`."""
    api = FastAPI(
        title="Slimscope", version="1", docs_url=None, redoc_url=None, responses=RESPONSES
    )
    add_error_handlers(api)
    for path, function in READ.items():
        api.get(path)(function)
    for path, function in CHANGE.items():
        api.post(path)(_for_user(function))
    for kind in kinds().values():
        _add_submit(api, kind)
    api.get("/runs/{run}/file", response_class=FileResponse)(download)
    api.post("/sweeps/{kind}", status_code=201)(submit_sweep)
    api.post("/pipelines", status_code=201)(submit_pipeline)
    api.post("/runs/{run}/vote")(vote)
    return api


# requests -----------------------------------------------------------------------------------------


def _for_user(function: Callable[[str, Actor], JsonObject]) -> Callable[[str, Request], JsonObject]:
    """The request that performs an operation on a run for whoever sends it."""

    def endpoint(run: str, request: Request) -> JsonObject:
        return function(run, current_user(request))

    endpoint.__name__, endpoint.__doc__ = function.__name__, function.__doc__
    return endpoint


def _add_submit(api: FastAPI, kind: Kind) -> None:
    """Adds one POST route per kind, so that the API's description has the schema of its config."""

    def submit_run(
        request: Request,
        config: Annotated[JsonObject, Body()] = EMPTY,
        name: Name = "",
        preset: Preset = "",
        priority: Priority = 0,
    ) -> JsonObject:
        user = current_user(request)
        return operations.submit_run(kind.name, config, user, preset, name, priority)

    schema = kind.config.model_json_schema()
    api.post(
        f"/submit/{kind.name}",
        status_code=201,
        operation_id=f"submit_{kind.name}",
        summary=f"Add a run: {kind.title}",
        description=f"{kind.summary} The body holds the settings that differ from the defaults.",
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": schema}}}},
    )(submit_run)


def submit_sweep(
    kind: str,
    request: Request,
    config: Annotated[JsonObject, Body()],
    sweep: Annotated[dict[str, str], Body()],
    name: Name = "",
    preset: Preset = "",
    priority: Priority = 0,
) -> list[JsonObject]:
    """Add a run for each combination of values: `sweep` is such as {"seed": "0..2"}."""
    user = current_user(request)
    return operations.submit_sweep(kind, config, sweep, user, preset, name, priority)


def submit_pipeline(
    request: Request, pipeline: Annotated[JsonObject, Body()], priority: Priority = 0
) -> list[JsonObject]:
    """Add several runs, each on what the one before will save; the body is a pipeline as JSON."""
    text = json.dumps(pipeline, ensure_ascii=False)  # YAML knows no pairs of surrogates
    return operations.submit_pipeline(text, current_user(request), priority)


def vote(run: str, request: Request, choice: Choice) -> list[JsonObject]:
    """Vote for an answer of the playground; answers with the texts and their models."""
    return operations.vote(run, choice, current_user(request))


def download(run: str, path: str, request: Request) -> FileResponse:
    """A file of what the run left, by its path in `artifacts`; models too, so only for hosts."""
    require_host(current_user(request), "download files")
    file = operations.artifact_file(run, path)
    return FileResponse(file, media_type="application/octet-stream", filename=file.name)


READ: dict[str, Callable[..., Any]] = {
    "/kinds": operations.list_kinds,
    "/models": operations.list_models,
    "/texts": operations.list_texts,
    "/runs": operations.list_runs,
    "/runs/{run}": operations.show_run,
    "/runs/{run}/results": operations.run_results,
    "/runs/{run}/curves": operations.run_curves,
    "/runs/{run}/tensors": operations.run_tensors,
    "/runs/{run}/log": operations.run_log,
    "/runs/{run}/answers": operations.run_answers,
    "/runs/{run}/artifacts": operations.run_artifacts,
    "/runs/{run}/sweep": operations.show_sweep,
    "/leaderboard": operations.show_leaderboard,
}
CHANGE: dict[str, Callable[[str, Actor], JsonObject]] = {
    "/runs/{run}/cancel": operations.cancel_run,
    "/runs/{run}/next": operations.run_next,
    "/runs/{run}/resume": operations.resume_run,
    "/runs/{run}/free": operations.free_space,
    "/runs/{run}/reproduce": operations.reproduce_run,
    "/runs/{run}/delete": operations.delete_run,
    "/runs/{run}/restore": operations.restore_run,
}


# the page that describes it -----------------------------------------------------------------------


def docs(_: Request) -> HTMLResponse:
    """All requests, as a page that loads nothing."""
    return HTMLResponse(_docs())


@once
def _docs() -> str:
    requests = [
        {
            "line": f"{method.upper()} {path}",
            "about": f"{operation.get('summary', '')}. {operation.get('description', '')}",
            "parameters": _parameters(operation),
        }
        for path, methods in build().openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    return render("templates/api.html", path=API_PATH, requests=requests)


def _parameters(operation: JsonObject) -> list[str]:
    """Names of the parameters of a request: in the address, then in its body."""
    named = [p["name"] for p in operation.get("parameters", ())]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return [*named, *body.get("schema", {}).get("properties", {})]
