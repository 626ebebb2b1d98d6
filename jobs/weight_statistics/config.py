"""The config of a weight statistics run."""

from jobs.fields.model import ModelConfig
from jobs.kind import JobConfig

NAME, DENSE = "statistics", "dense"


class StatisticsJob(ModelConfig, JobConfig):
    """Which model."""
