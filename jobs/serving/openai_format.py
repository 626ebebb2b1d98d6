"""Requests, answers and errors in the shapes of the OpenAI API, with settings of our own beside
OpenAI's. What cannot be done is refused, unless it is set to what has no effect."""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backend.decoding.limits import MIN_PENALTY, Temperature
from backend.errors import (
    ConfigError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    OverloadError,
    RateLimitError,
    SlimscopeError,
)

MAX_CHOICES = 16  # answers of one request
MAX_STOPS, MAX_STOP = 16, 300  # stop strings, and characters of one
MAX_MESSAGES, MAX_LETTERS, MAX_PARTS, MAX_PROMPTS = 200, 500_000, 200, 64
MAX_PARAMETERS = 100
NO_EFFECT: Mapping[str, tuple[Any, ...]] = MappingProxyType(  # field -> values that change nothing
    {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "suffix": ("",),
        "best_of": (1,),
        "store": (False,),
        "parallel_tool_calls": (True, False),
        "modalities": (["text"],),
    }
)
ABOUT = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")  # not read

R = TypeVar("R", bound="GenerationBody")
M = TypeVar("M", bound=BaseModel)
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP)]
Text = Annotated[str, Field(max_length=MAX_LETTERS)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
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


class StrictBody(BaseModel):
    """A part of a request, which holds nothing else, and no values of other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(StrictBody):
    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationBody(StrictBody):
    """What both endpoints take. `usual_tokens`: of an answer without `max_tokens`, as far as they
    fit; `details`: also what is ours, in a field `slimscope`."""

    model: str = Field(min_length=1, max_length=300)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=0)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: Temperature = Field(1.0, ge=0, le=5)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=10**6)
    repetition_penalty: float = Field(1.0, ge=MIN_PENALTY, le=10)
    lookup: bool = False
    nodes: int = Field(0, ge=0, le=256)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    usual_tokens: int = Field(1024, ge=1)
    details: bool = False

    @model_validator(mode="before")
    @classmethod
    def _without_what_has_no_effect(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if len(given) > MAX_PARAMETERS:
            raise ValueError(f"It has {len(given):,} parameters")
        kept = {n: v for n, v in given.items() if v is not None and n not in ABOUT}
        for name in kept.keys() & NO_EFFECT.keys():
            if kept.pop(name) not in NO_EFFECT[name]:
                raise ValueError(f"{name} is not supported")
        return kept

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(StrictBody):
    type: Literal["text"]
    text: Text


class ChatMessage(StrictBody):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    name: str = ""

    @property
    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`. `chat_template`: whether the model's template is used."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    chat_template: bool = True

    @property
    def prompts(self) -> list[list[dict[str, str]]]:
        return [[message.plain for message in self.messages]]

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def letters(self) -> int:
        return sum(len(message.plain["content"]) for message in self.messages)

    @property
    def likeliest(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


class CompletionBody(GenerationBody):
    """`POST /v1/completions`: texts, or token ids."""

    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int):
            return [*self.prompt]
        return [self.prompt]

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def letters(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def likeliest(self) -> int | None:
        return self.logprobs


Body = ChatBody | CompletionBody
ENDPOINTS: Mapping[str, type[Body]] = MappingProxyType(
    {"/v1/chat/completions": ChatBody, "/v1/completions": CompletionBody}
)


def read_body(path: str, text: bytes) -> Body:
    """The request in a JSON text; see `read_fields`."""
    return read_fields(ENDPOINTS[path], text)


def read_fields(kind: type[M], given: bytes | Mapping[str, str]) -> M:
    """The request in a JSON text, or in the query of an address; raises `ConfigError` with the
    field that is wrong."""
    try:
        if isinstance(given, bytes):
            return kind.model_validate_json(given)
        return kind.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        first = next((each for each in found if not each["type"].endswith("_type")), found[0])
        field = str(first["loc"][0]) if first["loc"] else None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "There is no such parameter"
        raise ConfigError(
            f"{field} was not accepted." if field else "The request was not accepted.",
            f"{message}.",
            "",
            field,
        ) from error


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
            "object": name,
            "created": int(time.time()),
            "model": body.model,
        }
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
