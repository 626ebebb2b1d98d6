"""The model a job works on: a field shared by every kind that reads one."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, field_validator

from jobs.fields.types import ModelSpec

DEFAULT_MODEL = "smollm2-135m"


class ModelConfig(BaseModel):
    """Which model."""

    model: ModelSpec = DEFAULT_MODEL

    @field_validator("model")
    @classmethod
    def _absolute(cls, spec: str) -> str:
        """A path means the same wherever the job runs."""
        return absolute(spec)


def absolute(spec: str) -> str:
    """`spec` without blanks around it; a path made absolute."""
    spec = spec.strip()
    return str(Path(spec).expanduser().resolve()) if spec.startswith((".", "~")) else spec
