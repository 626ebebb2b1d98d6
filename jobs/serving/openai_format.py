"""Requests, errors and events in the format of the OpenAI API, with additional parameters of
Slimscope. Unsupported parameters are rejected unless their value has no effect."""

import json
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

MAX_CHOICES = 16  # answers per prompt
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 300  # number of stop strings; characters of one
MAX_MESSAGES, MAX_CHARACTERS, MAX_PARTS, MAX_PROMPTS = 200, 500_000, 200, 64
MAX_PARAMETERS = 100
# unsupported field -> accepted values, which have no effect
INEFFECTIVE_VALUES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
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
IGNORED_FIELDS = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")

R = TypeVar("R", bound="GenerationBody")
M = TypeVar("M", bound=BaseModel)
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
DONE = b"data: [DONE]\n\n"
ERROR_TYPES: tuple[tuple[type[SlimscopeError], int, str, str], ...] = (  # status, type, code
    (OverloadError, 429, "rate_limit_error", "overloaded"),
    (RateLimitError, 429, "rate_limit_error", "rate_limit_exceeded"),
    (ForbiddenError, 403, "permission_error", "forbidden"),
    (NotFoundError, 404, "invalid_request_error", "model_not_found"),
    (ConflictError, 409, "invalid_request_error", "conflict"),
    (ConfigError, 400, "invalid_request_error", "invalid_value"),
    (SlimscopeError, 500, "server_error", "server_error"),
)

JsonObject = dict[str, Any]


class StrictBody(BaseModel):
    """Base of request models: rejects unknown fields and values of other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(StrictBody):
    """Options of a streamed response."""

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationBody(StrictBody):
    """Parameters that both endpoints share.

    Attributes:
        usual_tokens: maximum length of an answer without `max_tokens`, if the context has room.
        details: also return Slimscope's own data, in a field `slimscope`.
    """

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
    def _drop_ineffective_fields(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        if len(body) > MAX_PARAMETERS:
            raise ValueError(f"It has {len(body):,} parameters")
        fields = {n: v for n, v in body.items() if v is not None and n not in IGNORED_FIELDS}
        for name in fields.keys() & INEFFECTIVE_VALUES.keys():
            if fields.pop(name) not in INEFFECTIVE_VALUES[name]:
                raise ValueError(f"{name} is not supported")
        return fields

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(StrictBody):
    """Text part of a message; other parts are not supported."""

    type: Literal["text"]
    text: Text


class ChatMessage(StrictBody):
    """Message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    name: str = ""

    @property
    def plain(self) -> dict[str, str]:
        """The message in the format of chat templates."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(GenerationBody):
    """Body of `POST /v1/chat/completions`. `chat_template`: True to use the model's template."""

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
        """Requested maximum of tokens; None: not set."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def character_count(self) -> int:
        """Number of characters of all messages."""
        return sum(len(message.plain["content"]) for message in self.messages)

    @property
    def logprob_count(self) -> int | None:
        """Number of alternatives listed with each token; None: no log-probabilities."""
        return self.top_logprobs if self.logprobs else None


class CompletionBody(GenerationBody):
    """Body of `POST /v1/completions`. A prompt is a text or token ids."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
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
        """Requested maximum of tokens; None: not set."""
        return self.max_tokens

    @property
    def character_count(self) -> int:
        """Number of characters, or of token ids, of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def logprob_count(self) -> int | None:
        """Number of alternatives listed with each token; None: no log-probabilities."""
        return self.logprobs


Body = ChatBody | CompletionBody
ENDPOINTS: Mapping[str, type[Body]] = MappingProxyType(
    {"/v1/chat/completions": ChatBody, "/v1/completions": CompletionBody}
)


def read_body(path: str, text: bytes) -> Body:
    """Parse the body of a request; see `read_fields`."""
    return read_fields(ENDPOINTS[path], text)


def read_fields(kind: type[M], content: bytes | Mapping[str, str]) -> M:
    """Parse a JSON text, or the query of a URL, as a request of type `kind`.

    Raises:
        ConfigError: a field is invalid.
    """
    try:
        if isinstance(content, bytes):
            return kind.model_validate_json(content)
        return kind.model_validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        # prefer a wrong value to a wrong type, which other members of a union report
        first = next((item for item in errors if not item["type"].endswith("_type")), errors[0])
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


def error_body(error: SlimscopeError, status: int = 0) -> tuple[int, JsonObject]:
    """Return the HTTP status and body of an error. `status` overrides the default status unless it
    is 0."""
    usual, kind, code = next(row[1:] for row in ERROR_TYPES if isinstance(error, row[0]))
    if status == 401:
        kind, code = "authentication_error", "invalid_api_key"
    elif status not in (0, usual):
        kind, code = "invalid_request_error", "invalid_request"
    content = {"message": str(error), "type": kind, "param": error.field, "code": code}
    return status or usual, {"error": content}


def error_headers(error: SlimscopeError) -> dict[str, str]:
    """Return the `Retry-After` header of an error, if it has one."""
    if isinstance(error, OverloadError):
        return {"retry-after": f"{max(1, round(error.retry_after_s))}"}
    return {"retry-after": "10"} if isinstance(error, RateLimitError) else {}


def event(content: JsonObject) -> bytes:
    """Encode a server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def comment(content: JsonObject) -> bytes:
    """Encode a comment of the stream, which clients of the API skip."""
    return f": {json.dumps(content)}\n\n".encode()


def model_list(names: Sequence[str]) -> JsonObject:
    """Return the response of `GET /v1/models`."""
    models = [
        {"id": name, "object": "model", "created": 0, "owned_by": "slimscope"} for name in names
    ]
    return {"object": "list", "data": models}
