"""Field types that several configs share. A config adds the default, and where it differs the
description or further bounds."""

from typing import Annotated, Any, Literal, get_args, get_origin

from backend.options import Dtype, option

ModelSpec = Annotated[str, option(title="Model", min_length=1, max_length=300, choices="saved")]
CorpusName = Annotated[str, option(min_length=1, max_length=300)]
PromptSet = Annotated[str, option(min_length=1, max_length=300, title="Prompts")]
Precision = Annotated[
    Dtype,
    option(
        title="Precision", advanced=True,
        description="auto: bfloat16 where it is faster. Only float32 reproduces the base model's "
        "text token for token.",
    ),
]  # fmt: skip
NewTokens = Annotated[
    int, option(title="New tokens", unit="tokens", description="Maximum length of a response.")
]
TreeSize = Annotated[
    int,
    option(
        title="Tree size", ge=0, le=256, unit="nodes",
        description="Draft tokens verified at once, the root included. 0: at each step as many as "
        "pay on this machine, measured first.",
    ),
]  # fmt: skip


def options(annotation: Any) -> tuple[str, ...]:
    """The values of a field that takes one of them, or several; empty for other fields."""
    each = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return tuple(map(str, get_args(each))) if get_origin(each) is Literal else ()
