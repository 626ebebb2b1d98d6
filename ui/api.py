"""The JSON API: one route for every operation with a path. Roles, limits, validation and estimates
are enforced by the queue, not here. `ui.api_errors` defines the error format."""

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

SUBMIT = "/submit/{kind}"  # expands to one route per kind, each with its own config schema


def build() -> FastAPI:
    """Build the FastAPI application that is mounted at `API_PATH`."""
    api = FastAPI(
        title="Slimscope", version="1", docs_url=None, redoc_url=None, responses=RESPONSES
    )
    add_error_handlers(api)
    for operation in OPERATIONS.values():
        if operation.path == SUBMIT:
            for kind in kinds().values():
                schema = kind.config.model_json_schema()
                body = {"content": {"application/json": {"schema": schema}}}
                description = (
                    f"{kind.summary} The body contains the settings that differ from the defaults."
                )
                route = {
                    "summary": f"Add a run: {kind.title}",
                    "description": description,
                    "openapi_extra": {"requestBody": body},
                }
                path, fixed = SUBMIT.format(kind=kind.name), {"kind": kind.name}
                _add(api, operation, path, f"submit_{kind.name}", route, fixed)
        elif operation.path:
            name = operation.name.replace("-", "_")
            _add(api, operation, operation.path, name, {"description": operation.description})
    return api


def _add(
    api: FastAPI,
    operation: Operation,
    path: str,
    name: str,
    route: dict[str, Any],
    fixed: dict[str, str] | None = None,
) -> None:
    """Add the route that performs an operation for the current user. `fixed`: preset arguments."""
    fixed = fixed or {}
    signature = operation.signature
    parameters = {
        name: parameter for name, parameter in signature.parameters.items() if name not in fixed
    }
    if fixed:
        parameters["config"] = parameters["config"].replace(default={})

    def endpoint(request: Request, **values: Any) -> Any:
        for unknown in request.query_params.keys() - parameters.keys():
            raise ConfigError(
                f"There is no parameter {unknown[:40]!r}.",
                "",
                f"Use one of: {', '.join(parameters)}." if parameters else "Remove it.",
                unknown[:40],
            )
        result = operation.call(current_user(request), **fixed, **values)
        if isinstance(result, Path):
            return FileResponse(result, media_type="application/octet-stream", filename=result.name)
        return result

    is_file = signature.return_annotation is Path
    request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [request, *parameters.values()],
        return_annotation=FileResponse if is_file else signature.return_annotation,
    )
    response_class: dict[str, Any] = {"response_class": FileResponse} if is_file else {}
    api.add_api_route(
        path,
        endpoint,
        methods=["POST" if operation.writes else "GET"],
        operation_id=name,
        status_code=operation.status,
        **{"summary": name.replace("_", " ").capitalize()} | route,
        **response_class,
    )


# documentation page ------------------------------------------------------------------------------


def docs(_: Request) -> HTMLResponse:
    """Return the documentation page of all requests. It loads no other files."""
    return HTMLResponse(_docs())


def docs_html() -> str:
    requests = [
        {
            "line": f"{method.upper()} {path}",
            "about": spec["description"],
            "parameters": _parameters(spec),
        }
        for path, methods in build().openapi()["paths"].items()
        for method, spec in methods.items()
    ]
    return render("templates/api.html", path=API_PATH, requests=requests)


_docs = once(docs_html)


def _parameters(spec: dict[str, Any]) -> list[str]:
    """Return parameter names of a request: those of the URL, then those of the body."""
    url_names = [p["name"] for p in spec.get("parameters", ())]
    body = spec.get("requestBody", {}).get("content", {}).get("application/json", {})
    return [*url_names, *body.get("schema", {}).get("properties", {})]
