"""The config of a sensitivity profile."""

from pydantic import field_validator

from backend.options import Dtype, option
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
QUANTIZER = "gptq"  # makes the quantized candidates
EMBEDDING_FORMATS = tuple(map(Format.parse, ("int8-g32", "int6-g32", "int4-g32")))
MAX_FORMATS = 64


class ProfileJob(ModelConfig, CalibrationText, JobConfig):
    """Which model, on which text, in which formats."""

    formats: str = option(FORMATS, "Formats", max_length=1000)
    """What every layer is tried in, comma-separated: int4-g64 is 4 bits in groups of 64, 50% and
    2:4 are sparsity patterns, 2:4+int4-g64 is both."""
    measured: str = option("", "Formats measured", max_length=1000, examples=["int3-g64, 50%"])
    """In which the loss of each layer alone is measured on held-out text, beside the Fisher
    estimate; the others are scaled to it. Several times as slow."""
    windows: int = option(1, "Windows a measurement", ge=1, le=64, unit="windows", advanced=True)
    """Of the held-out ones, for the loss of each layer alone."""
    pruner: PrunerName = option("sparsegpt", "Pruner", advanced=True)
    """Makes the pruned candidates."""
    grid: GridType = option("symmetric", "Grid", advanced=True)
    """Of the quantized candidates, which GPTQ makes."""
    space: SpaceName = option("weighted", "Range search", advanced=True)
    """Of the quantized candidates."""
    damping: float = option(0.01, "Damping", gt=0, le=1, advanced=True)
    """Added to the Hessian diagonal, relative to the mean input energy."""
    precision: Dtype = option("auto", "Forward precision", advanced=True)
    """Of all passes. auto: bfloat16 where the hardware supports it."""

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
