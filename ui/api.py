"""The JSON API: every operation that has a path, for programs. It has no rules of its own: roles,
limits, validation and estimates are those of the queue. `ui.api_errors` says what an error looks
like."""

import inspect
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse

from backend.errors import ConfigError
from jobs.kind import kinds
from jobs.operations.registry import OPERATIONS, Operation
from ui.api_errors import API_PATH, RESPONSES, add_error_handlers
from ui.security.auth import current_user
from ui.static import once
from ui.templates import render

SUBMIT = "/submit/{kind}"  # a route for each kind, so that the description has the schema of each


def build() -> FastAPI:
    """The application that is mounted at `API_PATH`."""
    api = FastAPI(
        title="Slimscope", version="1", docs_url=None, redoc_url=None, responses=RESPONSES
    )
    add_error_handlers(api)
    for operation in OPERATIONS.values():
        if operation.path == SUBMIT:
            for kind in kinds().values():
                schema = kind.config.model_json_schema()
                body = {"content": {"application/json": {"schema": schema}}}
                told = f"{kind.summary} The body holds the settings that differ from the defaults."
                about = {
                    "summary": f"Add a run: {kind.title}",
                    "description": told,
                    "openapi_extra": {"requestBody": body},
                }
                path, fixed = SUBMIT.format(kind=kind.name), {"kind": kind.name}
                _add(api, operation, path, f"submit_{kind.name}", about, fixed)
        elif operation.path:
            name = operation.name.replace("-", "_")
            _add(api, operation, operation.path, name, {"description": operation.description})
    return api


def _add(
    api: FastAPI,
    operation: Operation,
    path: str,
    name: str,
    about: dict[str, Any],
    fixed: dict[str, str] | None = None,
) -> None:
    """Adds the request that does an operation for whoever sends it."""
    fixed = fixed or {}
    signature = operation.signature
    parameters = {n: each for n, each in signature.parameters.items() if n not in fixed}
    if fixed:
        parameters["config"] = parameters["config"].replace(default={})

    def endpoint(request: Request, **values: Any) -> Any:
        for unknown in request.query_params.keys() - parameters.keys():
            raise ConfigError(
                f"There is no parameter {unknown[:40]!r}.",
                "",
                f"There are: {', '.join(parameters) or 'none'}.",
                unknown[:40],
            )
        answer = operation.call(current_user(request), **fixed, **values)
        if isinstance(answer, Path):
            return FileResponse(answer, media_type="application/octet-stream", filename=answer.name)
        return answer

    is_file = signature.return_annotation is Path
    request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [request, *parameters.values()],
        return_annotation=FileResponse if is_file else signature.return_annotation,
    )
    more: dict[str, Any] = {"response_class": FileResponse} if is_file else {}
    api.add_api_route(
        path,
        endpoint,
        methods=["POST" if operation.writes else "GET"],
        operation_id=name,
        status_code=operation.status,
        **{"summary": name.replace("_", " ").capitalize()} | about,
        **more,
    )


# the page that describes it -----------------------------------------------------------------------


def docs(_: Request) -> HTMLResponse:
    """All requests, as a page that loads nothing."""
    return HTMLResponse(_docs())


def docs_html() -> str:
    requests = [
        {
            "line": f"{method.upper()} {path}",
            "about": described["description"],
            "parameters": _parameters(described),
        }
        for path, methods in build().openapi()["paths"].items()
        for method, described in methods.items()
    ]
    return render("templates/api.html", path=API_PATH, requests=requests)


_docs = once(docs_html)


def _parameters(described: dict[str, Any]) -> list[str]:
    """Names of the parameters of a request: in the address, then in its body."""
    named = [p["name"] for p in described.get("parameters", ())]
    body = described.get("requestBody", {}).get("content", {}).get("application/json", {})
    return [*named, *body.get("schema", {}).get("properties", {})]
