"""The key of a metric: what a figure or a curve measures, as the tables hold it."""

import re
from dataclasses import dataclass, fields

NAME = re.compile(r"([^/]+?)(?:/(.+?))?(?:@([^@/]+))?")  # family, series, stage


@dataclass(frozen=True, slots=True)
class MetricKey:
    """Identifies a figure or a curve.

    Attributes:
        family: name of the metric, described in `jobs/metrics.py`: "loss", "bytes".
        stage: of the model, or the part of it or the decoder, that is measured; empty for the run.
            The key of a metric as such has none.
        series: one of several of the family at a stage: a format, a task, a quantile.
        axis: what the `step` of a curve counts, in small letters: "step", "block", "nodes".
    """

    family: str
    stage: str = ""
    series: str = ""
    axis: str = "step"

    def __str__(self) -> str:
        """The name people see and type: "loss", "bytes/gptq", "error@sds", "m/p50@dlqat"."""
        series = f"/{self.series}" if self.series else ""
        return f"{self.family}{series}{f'@{self.stage}' if self.stage else ''}"

    @classmethod
    def parse(cls, name: str) -> "MetricKey":
        """The key of such a name, over the usual axis."""
        found = NAME.fullmatch(name)
        return cls(found[1], found[3] or "", found[2] or "") if found else cls(name)


KEY_COLUMNS = tuple(field.name for field in fields(MetricKey))
