"""Errors as the JSON API reports them: `{"what", "why", "do", "field", "others"}`, as on the pages.

403 not allowed, 404 not found, 409 not possible in this state, 422 invalid, 429 too many requests.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from backend.errors import (
    ConfigError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RateLimitError,
    SlimscopeError,
)

API_PATH = "/slimscope/api"
STATUS: tuple[tuple[type[SlimscopeError], int], ...] = (
    (ForbiddenError, 403),
    (NotFoundError, 404),
    (ConflictError, 409),
    (RateLimitError, 429),
    (SlimscopeError, 422),
)


class ErrorPart(BaseModel):
    """What is wrong, why, what to do, and with which setting."""

    what: str
    why: str
    do: str
    field: str | None


class ErrorBody(ErrorPart):
    """The body of every answer that is an error, with what else is wrong with the same config."""

    others: list[ErrorPart]


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": about}
    for status, about in (
        (401, "Wrong token"), (403, "Not allowed"), (404, "Not found"),
        (409, "Not possible in the run's state"), (422, "Invalid"), (429, "Too many requests"),
    )
}  # fmt: skip


def add_error_handlers(api: FastAPI) -> None:
    """Makes the application answer with `error_response` whatever goes wrong."""
    api.add_exception_handler(SlimscopeError, _slimscope_error)
    api.add_exception_handler(RequestValidationError, _invalid_request)
    api.add_exception_handler(HTTPException, _no_such_route)


def error_response(error: SlimscopeError, status: int) -> JSONResponse:
    """An error as JSON, with the other errors of the same config."""
    content = _fields(error) | {"others": [_fields(other) for other in error.others]}
    return JSONResponse(content, status)


def _fields(error: SlimscopeError) -> dict[str, str | None]:
    return {"what": error.what, "why": error.why, "do": error.do, "field": error.field}


def _slimscope_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SlimscopeError)
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    return error_response(error, status)


def _invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = str(first["loc"][-1])
    return error_response(ConfigError(f"{field} is invalid.", f"{first['msg']}.", "", field), 422)


def _no_such_route(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    do = f"{API_PATH}/openapi.json lists all requests."
    return error_response(NotFoundError(f"{error.detail}.", "", do), error.status_code)
