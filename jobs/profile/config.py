"""The config of a sensitivity profile."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from backend.pruning.config import PrunerName
from backend.quantization import GridType
from backend.quantization.config import SpaceName
from backend.sensitivity.formats import Format
from jobs.fields.model import ModelConfig
from jobs.fields.text import CalibrationText
from jobs.kind import JobConfig

NAME, DENSE = "profile", "dense"
FORMATS = (
    "int2-g64, int3-g64, int4-g64, int5-g64, int6-g64, int8-g64, 30%, 40%, 50%, 60%, 70%, 80%, 2:4"
)
EMBEDDING_FORMATS = tuple(map(Format.parse, ("int8-g32", "int6-g32", "int4-g32")))
MAX_FORMATS = 64


class ProfileJob(ModelConfig, CalibrationText, JobConfig):
    """Which model, on which text, in which formats."""

    formats: str = Field(
        FORMATS, max_length=1000, title="Formats",
        description="What every layer is tried in, comma-separated: int4-g64 is 4 bits in groups "
        "of 64, 50% and 2:4 are sparsity patterns, 2:4+int4-g64 is both.",
    )  # fmt: skip
    measured: str = Field(
        "", max_length=1000, title="Formats measured",
        description="In which the loss of each layer alone is measured on held-out text, beside "
        "the Fisher estimate; the others are scaled to it. Several times as slow.",
        examples=["int3-g64, 50%"],
    )  # fmt: skip
    windows: int = Field(
        1, ge=1, le=64, title="Windows a measurement",
        description="Of the held-out ones, for the loss of each layer alone.",
        json_schema_extra={"unit": "windows", "advanced": True},
    )  # fmt: skip
    pruner: PrunerName = Field(
        "sparsegpt", title="Pruner", description="Makes the pruned candidates.",
        json_schema_extra={"advanced": True},
    )  # fmt: skip
    grid: GridType = Field(
        "symmetric", title="Grid", description="Of the quantized candidates, which GPTQ makes.",
        json_schema_extra={"advanced": True},
    )  # fmt: skip
    space: SpaceName = Field(
        "weighted", title="Range search", description="Of the quantized candidates.",
        json_schema_extra={"advanced": True},
    )  # fmt: skip
    damping: float = Field(
        0.01, gt=0, le=1, title="Damping", json_schema_extra={"advanced": True},
        description="Added to the Hessian diagonal, relative to the mean input energy.",
    )  # fmt: skip
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", title="Forward precision", json_schema_extra={"advanced": True},
        description="Of all passes. auto: bfloat16 where the hardware supports it.",
    )  # fmt: skip

    @field_validator("formats", "measured")
    @classmethod
    def _known_formats(cls, text: str) -> str:
        return ", ".join(dict.fromkeys(map(str, parsed(text))))

    @property
    def all_formats(self) -> tuple[Format, ...]:
        """The candidates, in the order of the figures that are stored of each layer; those of
        embedding and head last."""
        return tuple(dict.fromkeys((*parsed(self.formats), *EMBEDDING_FORMATS)))

    @property
    def measured_formats(self) -> tuple[Format, ...]:
        return parsed(self.measured)


def parsed(text: str) -> tuple[Format, ...]:
    """The formats in a comma-separated list. Raises ValueError: one is none."""
    return tuple(Format.parse(part) for part in text.split(",") if part.strip())
