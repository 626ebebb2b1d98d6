"""The config of an SDS run."""

from typing import Literal

from backend.options import option
from backend.pruning.config import SDSConfig
from jobs.fields.text import TextConfig
from jobs.fields.types import ModelConfig
from jobs.kind import JobConfig

NAME = "sds"


class SDSJob(ModelConfig, SDSConfig, TextConfig, JobConfig):
    """Model, texts and settings of the method."""

    weights: Literal["auto", "memory", "streamed"] = option("auto", "Weights", advanced=True)
    """memory: all at once. streamed: one block at a time, read from disk in every pass; slower, the
    same result. auto: streamed if the model does not fit."""
