"""The key of a metric, which identifies a figure or curve in the tables."""

import re
from dataclasses import dataclass, fields

NAME = re.compile(r"([^/]+?)(?:/(.+?))?(?:@([^@/]+))?")  # family, series, stage


@dataclass(frozen=True, slots=True)
class MetricKey:
    """Identifies a figure or a curve.

    Attributes:
        family: name of the metric, described in `jobs/metrics.py`: "loss", "bytes".
        stage: the measured stage, model part or decoder; empty for a metric of the whole run and
            for the key of a metric in general.
        series: one of several series of a family at a stage: a format, a task, a quantile.
        axis: the unit of a curve's `step`, in lower case: "step", "block", "nodes".
    """

    family: str
    stage: str = ""
    series: str = ""
    axis: str = "step"

    def __str__(self) -> str:
        """The name users see and type: "loss", "bytes/gptq", "error@sds", "m/p50@dlqat"."""
        series = f"/{self.series}" if self.series else ""
        return f"{self.family}{series}{f'@{self.stage}' if self.stage else ''}"

    @classmethod
    def parse(cls, name: str) -> "MetricKey":
        """Parse a name written by `__str__`; the axis is the default."""
        match = NAME.fullmatch(name)
        return cls(match[1], match[3] or "", match[2] or "") if match else cls(name)


KEY_COLUMNS = tuple(field.name for field in fields(MetricKey))
