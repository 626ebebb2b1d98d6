"""Field types that several configs share, and the model a job works on. A config adds the default,
and where it differs the description or further bounds."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import field_validator

from backend.files import real_path
from backend.models.sources import smollm2
from backend.models.sources.spec import TOY
from backend.options import Dtype, Options, option
from backend.settings import settings

ModelSpec = Annotated[str, option(title="Model", min_length=1, max_length=300, choices="saved")]
CorpusName = Annotated[str, option(min_length=1, max_length=300)]
PromptSet = Annotated[str, option(min_length=1, max_length=300, title="Prompts")]
Precision = Annotated[
    Dtype,
    option(
        title="Precision",
        advanced=True,
        description="auto: bfloat16 where it is faster. Only float32 reproduces the base model's "
        "text token for token.",
    ),
]
NewTokens = Annotated[
    int, option(title="New tokens", unit="tokens", description="Maximum length of a response.")
]
TreeSize = Annotated[
    int,
    option(
        title="Tree size",
        ge=0,
        le=256,
        unit="nodes",
        description="Draft tokens verified at once, the root included. 0: at each step as many as "
        "pay on this machine, measured first.",
    ),
]
DEFAULT_MODEL = smollm2.NAME


def options(annotation: Any) -> tuple[str, ...]:
    """The values of a field that takes one of them, or several; empty for other fields."""
    each = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return tuple(map(str, get_args(each))) if get_origin(each) is Literal else ()


class ModelConfig(Options):
    """Which model."""

    model: ModelSpec = DEFAULT_MODEL
    """Pick one, or type a Hugging Face id (org/name), a folder, or a .gguf file."""

    @field_validator("model")
    @classmethod
    def _absolute(cls, spec: str) -> str:
        """A path means the same wherever the job runs."""
        return absolute(spec)


def absolute(spec: str) -> str:
    """`spec` without blanks around it; a model of ours in lower case; a path absolute, from the
    current folder or else from the data folder."""
    spec = spec.strip()
    if spec.lower() in (TOY, smollm2.NAME):
        return spec.lower()
    if not spec.startswith((".", "~")) and (not spec.endswith(".gguf") or spec.startswith("/")):
        return spec
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 (raises where there is no such user)
    own = settings().root / path
    return str(real_path(own if os.path.exists(own) and not os.path.exists(path) else path))  # noqa: PTH110
