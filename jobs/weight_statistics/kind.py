"""Weight statistics as a kind of job."""

from jobs.kind import Kind
from jobs.weight_statistics.config import DENSE, NAME, StatisticsJob
from jobs.weight_statistics.estimate import requirements

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
