"""Error responses of the JSON API: `{"what", "why", "do", "field", "others"}`, as on the pages.

403 not allowed, 404 not found, 409 not possible in this state, 422 invalid, 429 too many requests,
503 database unavailable.
"""

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, TimeoutError
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

log = logging.getLogger("slimscope.database")

API_PATH = "/slimscope/api"
STATUS: tuple[tuple[type[SlimscopeError], int], ...] = (
    (ForbiddenError, 403),
    (NotFoundError, 404),
    (ConflictError, 409),
    (RateLimitError, 429),
    (SlimscopeError, 422),
)
REMEDIES = (  # word in the database error -> what to do
    ("locked", "Try again in a minute: another process is writing."),
    ("full", "Free some space on the disk of the data folder, then try again."),
)


class ErrorPart(BaseModel):
    """One error and the setting it refers to."""

    what: str
    why: str
    do: str
    field: str | None


class ErrorBody(ErrorPart):
    """The body of every error response. `others`: further errors of the same config."""

    others: list[ErrorPart]


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": about}
    for status, about in (
        (401, "Wrong token"),
        (403, "Not allowed"),
        (404, "Not found"),
        (409, "Not possible in the run's state"),
        (422, "Invalid"),
        (429, "Too many requests"),
    )
}


def add_error_handlers(api: FastAPI) -> None:
    """Make the application answer every error with `error_response`."""
    api.add_exception_handler(SlimscopeError, lambda _, error: error_response(error))
    api.add_exception_handler(RequestValidationError, invalid_request)
    api.add_exception_handler(HTTPException, _no_such_route)
    for kind in (DBAPIError, TimeoutError):
        api.add_exception_handler(kind, _database_error)


def error_response(error: SlimscopeError, status: int = 0) -> JSONResponse:
    """Return an error as JSON with the other errors of the same config. `status`: 0: by error
    type."""
    default_status = next(status for kind, status in STATUS if isinstance(error, kind))
    content = _fields(error) | {"others": [_fields(other) for other in error.others]}
    return JSONResponse(content, status or default_status)


def _fields(error: SlimscopeError) -> dict[str, str | None]:
    return {"what": error.what, "why": error.why, "do": error.do, "field": error.field}


def invalid_request(_: Request, error: Any) -> JSONResponse:
    """The first fault of a request; FastAPI's own answer repeats all that was sent."""
    first = error.errors()[0]
    field = str(first["loc"][-1])
    return error_response(ConfigError(f"{field} is invalid.", f"{first['msg']}.", "", field), 422)


def _no_such_route(_: Request, error: Any) -> JSONResponse:
    return error_response(
        NotFoundError(f"{error.detail}.", "", f"{API_PATH}/openapi.json lists all requests."),
        error.status_code,
    )


def _database_error(_: Request, error: Exception) -> JSONResponse:
    """Return the database's own message without the statement, and log the traceback."""
    log.error("The database could not be used.", exc_info=error)
    reason = f"{error.orig if isinstance(error, DBAPIError) else error}"
    do = "See the log of the dashboard for details."
    do = next((remedy for word, remedy in REMEDIES if word in reason), do)
    return error_response(SlimscopeError("The database could not be used.", f"{reason}.", do), 503)
