"""Field types that several configs share. A config adds the default, and where it differs the
description or further bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field

ModelSpec = Annotated[
    str,
    Field(
        min_length=1,
        max_length=300,
        title="Model",
        description="A name from the list, a run that saved a model, a hub id (org/name), a "
        "folder, or a .gguf file.",
        json_schema_extra={"choices": "saved"},
    ),
]
CorpusName = Annotated[str, Field(min_length=1, max_length=300)]
PromptSet = Annotated[str, Field(min_length=1, max_length=300, title="Prompts")]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Field(
        title="Precision",
        description="auto: bfloat16 where it is faster. Only float32 reproduces the "
        "base model's text token for token.",
        json_schema_extra={"advanced": True},
    ),
]
NewTokens = Annotated[
    int,
    Field(
        title="New tokens",
        description="Maximum length of a response.",
        json_schema_extra={"unit": "tokens"},
    ),
]
TreeSize = Annotated[
    int,
    Field(
        ge=0,
        le=256,
        title="Tree size",
        description="Draft tokens verified at once, the root included. 0: at each step as many "
        "as pay on this machine, measured first.",
        json_schema_extra={"unit": "nodes"},
    ),
]


def options(annotation: Any) -> tuple[str, ...]:
    """The values of a field that takes one of them, or several; empty for other fields."""
    each = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return tuple(map(str, get_args(each))) if get_origin(each) is Literal else ()
