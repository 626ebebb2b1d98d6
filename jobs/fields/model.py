"""The model a job works on: a field shared by every kind that reads one."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, field_validator


class ModelConfig(BaseModel):
    """Which model."""

    model: str = Field(
        "smollm2-135m",
        min_length=1,
        max_length=300,
        title="Model",
        description="A name from the list, a hub id (org/name), a folder, or a .gguf file.",
    )

    @field_validator("model")
    @classmethod
    def _absolute(cls, spec: str) -> str:
        """A path means the same wherever the job runs."""
        return absolute(spec)


def absolute(spec: str) -> str:
    """`spec` without blanks around it; a path made absolute."""
    spec = spec.strip()
    return str(Path(spec).expanduser().resolve()) if spec.startswith((".", "~")) else spec
