"""What weight statistics need before they start: FLOPs and memory."""

from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME
from jobs.fields.base_model import resolve_model
from jobs.kind import Requirements
from jobs.runtime.duration import STATISTICS_FLOPS
from jobs.weight_statistics.config import StatisticsJob

MATRIX_COPIES = 6  # of the largest one: as stored, float32, sorted, and what is being computed


def requirements(config: StatisticsJob) -> Requirements:
    facts = resolve_model(config.model, reads=False).facts
    largest = max(x.weights for x in facts.matrices)
    return Requirements(
        model=config.model,
        title=facts.title,
        flops=flops_by_phase(facts),
        memory={"runtime": RUNTIME, "matrix": 4 * MATRIX_COPIES * largest},
    )


def flops_by_phase(facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of the only phase."""
    return {"measure": STATISTICS_FLOPS * sum(x.weights for x in facts.matrices)}
