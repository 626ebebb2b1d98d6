"""SDS pruning as a job: load, measure, prune, re-densify, prune again, measure, save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from backend.methods.sds.config import SDSConfig
from jobs.kinds import JobConfig
from jobs.text import TextConfig

if TYPE_CHECKING:
    pass


class SDSJob(SDSConfig, TextConfig, JobConfig):
    """A model, its texts, and the choices of the method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        "smollm2-135m",
        min_length=1,
        max_length=300,
        title="Model",
        description="A name from the list, a hub id (org/name), a folder, or a .gguf file.",
    )


KINDS = ()
