"""Weight statistics as a kind of job."""

from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME
from jobs.fields.models import resolve_model
from jobs.fields.types import ModelConfig
from jobs.kind import JobConfig, Kind, Requirements
from jobs.runtime.duration import STATISTICS_FLOPS

NAME, DENSE = "statistics", "dense"
MATRIX_COPIES = 6  # of the largest one: as stored, float32, sorted, and what is being computed


class StatisticsJob(ModelConfig, JobConfig):
    """Which model."""


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


KIND = Kind(
    name=NAME,
    title="Weight statistics",
    summary="Statistics of a model's weights: no text, no forward pass, little memory.",
    config=StatisticsJob,
    requirements=requirements,
    run="jobs.weight_statistics.run:run",
    order=70,
    has_models=False,
    stages={DENSE: "As stored"},  # it may be a pruned one
)
