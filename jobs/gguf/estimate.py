"""What an export needs before it starts, and what is refused."""

from __future__ import annotations

from pathlib import Path

from backend.models.memory import RUNTIME
from jobs.fields.base_model import ResolvedModel, resolve_model
from jobs.fields.gguf import check_folder, exported_type
from jobs.gguf.config import GGUFJob
from jobs.kind import Requirements

WRITE_FLOPS = 60.0  # of one weight: read, rounded, packed, written
COPIES = 6  # of the largest matrix: as stored, float32, and what rounding makes of it


def requirements(config: GGUFJob) -> Requirements:
    """See `Kind.requirements`."""
    base = resolve_model(config.model)
    if Path(base.source).is_dir():  # else it has to be set up first
        check_folder(Path(base.source))
    exported_type(config.type, base)
    largest = max(x.weights for x in base.facts.linears)
    held = 2 * base.facts.parameters if base.packed else 0
    return Requirements(
        model=config.model,
        title=base.facts.title,
        flops=flops_by_phase(base),
        memory={"runtime": RUNTIME, "codes": held, "matrix": 4 * COPIES * largest},
    )


def flops_by_phase(base: ResolvedModel) -> dict[str, float]:
    """Floating-point operations of the only phase."""
    return {"write": WRITE_FLOPS * base.facts.parameters}
