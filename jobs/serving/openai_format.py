"""Answers and errors in the shapes of the OpenAI API."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from backend.errors import (
    ConfigError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    OverloadError,
    RateLimitError,
    SlimscopeError,
)
from jobs.serving.requests import Body, ChatBody

DONE = b"data: [DONE]\n\n"
FAULTS: tuple[tuple[type[SlimscopeError], int, str, str], ...] = (  # status, type, code
    (OverloadError, 429, "rate_limit_error", "overloaded"),
    (RateLimitError, 429, "rate_limit_error", "rate_limit_exceeded"),
    (ForbiddenError, 403, "permission_error", "forbidden"),
    (NotFoundError, 404, "invalid_request_error", "model_not_found"),
    (ConflictError, 409, "invalid_request_error", "conflict"),
    (ConfigError, 400, "invalid_request_error", "invalid_value"),
    (SlimscopeError, 500, "server_error", "server_error"),
)

Row = dict[str, Any]


def error_body(error: SlimscopeError, status: int = 0) -> tuple[int, Row]:
    """Status and body of an error; `status`: instead of the usual one."""
    usual, kind, code = next(each[1:] for each in FAULTS if isinstance(error, each[0]))
    if status == 401:
        kind, code = "authentication_error", "invalid_api_key"
    elif status not in (0, usual):
        kind, code = "invalid_request_error", "invalid_request"
    about = {"message": str(error), "type": kind, "param": error.field, "code": code}
    return status or usual, {"error": about}


def error_headers(error: SlimscopeError) -> dict[str, str]:
    """When a client should ask again."""
    if isinstance(error, OverloadError):
        return {"retry-after": f"{max(1, round(error.retry_after_s))}"}
    return {"retry-after": "10"} if isinstance(error, RateLimitError) else {}


def event(content: Row) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def comment(content: Row) -> bytes:
    """A line of the stream that clients of the API skip."""
    return f": {json.dumps(content)}\n\n".encode()


def model_list(names: Sequence[str]) -> Row:
    models = [{"id": n, "object": "model", "created": 0, "owned_by": "slimscope"} for n in names]
    return {"object": "list", "data": models}


class ResponseFormat:
    """The shapes of the responses to one request."""

    def __init__(self, body: Body) -> None:
        self.chat = isinstance(body, ChatBody)
        name = "chat.completion" if self.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": name, "created": int(time.time()), "model": body.model,
        }  # fmt: skip
        self._chunk = self._head | ({"object": f"{name}.chunk"} if self.chat else {})

    def begin(self, index: int) -> Row:
        """The first chunk of a choice of a chat."""
        return self._piece(index, {"role": "assistant", "content": ""}, None, None)

    def piece(
        self, index: int, text: str, logprobs: Row | None, reason: str | None, details: Row | None
    ) -> Row:
        content: Any = ({"content": text} if text else {}) if self.chat else text
        chunk = self._piece(index, content, logprobs, reason)
        return chunk | ({"slimscope": details} if details else {})

    def _piece(self, index: int, content: Any, logprobs: Row | None, reason: str | None) -> Row:
        part = {"delta" if self.chat else "text": content}
        choice = {"index": index, **part, "logprobs": logprobs, "finish_reason": reason}
        return self._chunk | {"choices": [choice]}

    def usage_chunk(self, usage: Row) -> Row:
        return self._chunk | {"choices": [], "usage": usage}

    def whole(self, choices: Sequence[Row], usage: Row) -> Row:
        return self._head | {"choices": [*choices], "usage": usage}

    def choice(
        self, index: int, text: str, logprobs: Row | None, reason: str, details: Row | None
    ) -> Row:
        message = {"role": "assistant", "content": text, "refusal": None}
        part: Row = {"message": message} if self.chat else {"text": text}
        about = {"index": index, **part, "logprobs": logprobs, "finish_reason": reason}
        return about | ({"slimscope": details} if details else {})
