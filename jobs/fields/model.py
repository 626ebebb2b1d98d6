"""The model a job works on: a field shared by every kind that reads one."""

import os
from pathlib import Path

from pydantic import field_validator

from backend.models.sources import smollm2
from backend.models.sources.spec import TOY
from backend.options import Options
from backend.paths import real_path
from backend.settings import settings
from jobs.fields.types import ModelSpec

DEFAULT_MODEL = smollm2.NAME
OURS = (TOY, smollm2.NAME)


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
    if spec.lower() in OURS:
        return spec.lower()
    if not spec.startswith((".", "~")) and (not spec.endswith(".gguf") or spec.startswith("/")):
        return spec
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 (raises where there is no such user)
    own = settings().root / path
    return str(real_path(own if os.path.exists(own) and not os.path.exists(path) else path))  # noqa: PTH110
