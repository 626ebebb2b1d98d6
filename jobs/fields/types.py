"""Field types shared by several configs, and the field that selects a job's model. Configs add the
default and may override description and bounds."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import field_validator
from pydantic.fields import FieldInfo

from backend.files import real_path
from backend.models.sources.shipped import SHIPPED, SMOLLM2
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
        description="auto: bfloat16 where it is faster. Only float32 reproduces the text of the "
        "base model token for token.",
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
        description="Draft tokens verified at once, including the root. 0: chosen for each step "
        "from the measured speed of this machine.",
    ),
]
DEFAULT_MODEL = SMOLLM2.name


def options(annotation: Any) -> tuple[str, ...]:
    """Return the allowed values of a field that takes one or several of them; empty for others."""
    item_type = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return tuple(map(str, get_args(item_type))) if get_origin(item_type) is Literal else ()


def holds_list(info: FieldInfo) -> bool:
    """Return True for a field that is a list of values, written as comma-separated text."""
    extra = info.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("many"))


class ModelConfig(Options):
    """Model a job works on."""

    model: ModelSpec = DEFAULT_MODEL
    """Choose a model, or enter a Hugging Face id (org/name), a folder, or a .gguf file."""

    @field_validator("model")
    @classmethod
    def _absolute(cls, spec: str) -> str:
        """Make paths absolute, so that they are valid in every process."""
        return absolute(spec)


def absolute(spec: str) -> str:
    """Normalize a model spec: strip spaces, lowercase built-in names, and make paths absolute.

    Relative paths are resolved against the current folder, or the data folder if the file exists
    only there.
    """
    spec = spec.strip()
    if spec.lower() in (TOY, *SHIPPED):
        return spec.lower()
    if not spec.startswith((".", "~")) and (not spec.endswith(".gguf") or spec.startswith("/")):
        return spec
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 (raises where there is no such user)
    in_data_folder = settings().root / path
    if os.path.exists(in_data_folder) and not os.path.exists(path):  # noqa: PTH110
        path = in_data_folder
    return str(real_path(path))
