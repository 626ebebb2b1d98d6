"""Weight statistics as a kind of job."""

from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME
from jobs.estimates import PhaseWork
from jobs.fields.models import resolve_model
from jobs.fields.types import ModelConfig
from jobs.kind import JobConfig, Kind, Requirements

NAME, DENSE = "statistics", "dense"
MATRIX_COPIES = 6  # of the largest one: as stored, float32, sorted, and what is being computed


class StatisticsJob(ModelConfig, JobConfig):
    """Which model."""


def requirements(config: StatisticsJob) -> Requirements:
    facts = resolve_model(config.model, reads=False).facts
    largest = max(x.weights for x in facts.matrices)
    return Requirements(
        title=facts.title,
        work=work(facts),
        memory={"runtime": RUNTIME, "matrix": 4 * MATRIX_COPIES * largest},
    )


def work(facts: ModelFacts) -> list[PhaseWork]:
    """See `Requirements.work`."""
    return [PhaseWork("measure", 4.0 * sum(x.weights for x in facts.matrices), "memory")]


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
