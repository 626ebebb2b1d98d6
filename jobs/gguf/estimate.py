"""What an export needs before it starts, and what is refused."""

from __future__ import annotations

from pathlib import Path

from backend.export.formats import read_layout
from backend.export.gguf.architecture import architecture_of
from backend.export.gguf.tokenizer import vocabulary_of
from backend.export.gguf.types import choose_type
from backend.models.memory import RUNTIME
from backend.models.sources.headers import read_config
from jobs.fields.base_model import ResolvedModel, resolve_model
from jobs.gguf.config import GGUFJob
from jobs.kind import Requirements

WRITE_FLOPS = 60.0  # of one weight: read, rounded, packed, written
COPIES = 6  # of the largest matrix: as stored, float32, and what rounding makes of it


def requirements(config: GGUFJob) -> Requirements:
    """See `Kind.requirements`."""
    base = resolve_model(config.model)
    if Path(base.source).is_dir():  # else it has to be set up first
        check_folder(Path(base.source))
    exported_type(config, base)
    largest = max(x.weights for x in base.facts.linears)
    held = 2 * base.facts.parameters if base.packed else 0
    return Requirements(
        model=config.model,
        title=base.facts.title,
        flops=flops_by_phase(base),
        memory={"runtime": RUNTIME, "codes": held, "matrix": 4 * COPIES * largest},
    )


def check_folder(folder: Path) -> None:
    """Refuse a model or a tokenizer that GGUF cannot express."""
    sizes = architecture_of(read_config(folder))
    vocabulary_of(folder, sizes.vocabulary)


def exported_type(config: GGUFJob, base: ResolvedModel) -> str:
    """The type of the linear layers.

    Raises:
        ConfigError: it cannot hold the codes of the model.
    """
    layout = read_layout(Path(base.source)) if base.packed else None
    return choose_type(config.type, layout, base.facts.dtype)


def flops_by_phase(base: ResolvedModel) -> dict[str, float]:
    """Floating-point operations of the only phase."""
    return {"write": WRITE_FLOPS * base.facts.parameters}
