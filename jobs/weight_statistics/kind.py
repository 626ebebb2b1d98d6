"""The `statistics` kind of run, which computes weight statistics of a model."""

from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME_BYTES
from jobs.estimates import PhaseWork
from jobs.fields.models import resolve_model
from jobs.fields.types import ModelConfig
from jobs.kind import JobConfig, Kind, Requirements

NAME, DENSE = "statistics", "dense"
MATRIX_COPIES = 6  # copies of the largest matrix in memory: stored, float32, sorted, intermediates


class StatisticsJob(ModelConfig, JobConfig):
    """Model to measure."""


def requirements(config: StatisticsJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model, reads=False).facts
    largest = max(x.weights for x in facts.matrices)
    return Requirements(
        title=facts.title,
        work=work(facts),
        memory={"runtime": RUNTIME_BYTES, "matrix": 4 * MATRIX_COPIES * largest},
    )


def work(facts: ModelFacts) -> list[PhaseWork]:
    """See `Requirements.work`."""
    return [PhaseWork("measure", 4.0 * sum(x.weights for x in facts.matrices), "memory")]


KIND = Kind(
    name=NAME,
    title="Weight statistics",
    summary="Measure the distribution of a model's weights, without text or forward passes.",
    config=StatisticsJob,
    requirements=requirements,
    run="jobs.weight_statistics.run:run",
    order=70,
    has_models=False,
    stages={DENSE: "As stored"},  # the model may be pruned
)
