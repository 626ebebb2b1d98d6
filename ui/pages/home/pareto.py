"""What is best so far: runs that can be compared with one another, and their Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from backend.metric_key import MetricKey
from backend.store.states import State
from jobs.metrics import (
    BITS_PER_WEIGHT,
    BYTES,
    LINEAR_BYTES,
    PERPLEXITY,
    SIZE,
    SPEED_UP,
    TOKENS_PER_SECOND,
    ZERO_SHARE,
    metric,
    ordered,
)
from ui.pages.home.pareto_chart import ParetoPoint, pareto_front
from ui.runs.deltas import comparable_by
from ui.runs.results import base_model, kind_title, setting_summary
from ui.runs.rows import RunRow

AXES = (SIZE, ZERO_SHARE, BITS_PER_WEIGHT, SPEED_UP, TOKENS_PER_SECOND)
MIN_SPREAD = 0.01  # values closer than that, relative to the largest, do not make an axis
MAX_POINTS = 500  # the newest, and all on the front


@dataclass(frozen=True)
class ComparableRuns:
    """Runs of one base model with perplexity on the same tokens; `key` is in the address."""

    key: str
    label: str
    rows: Sequence[RunRow]

    @cached_property
    def dense(self) -> float | None:
        """Perplexity of the dense model, as the newest of the runs measured it."""
        values = (row.figures.value("dense", PERPLEXITY) for row in self.rows)
        return next((value for value in values if value is not None), None)

    @property
    def axes(self) -> list[MetricKey]:
        """The costs the runs differ in; then those that at least one run has."""
        keys = [key for key in self._keys if self._values(key)]
        differing = [key for key in keys if _spread(self._values(key)) > MIN_SPREAD]
        return differing + [key for key in keys if key not in differing]

    @property
    def _keys(self) -> list[MetricKey]:
        final = (key for row in self.rows for key in row.figures.final_keys)
        sizes = ordered(key for key in final if key.family in (BYTES, LINEAR_BYTES) and key.series)
        return [AXES[0], *sizes, *AXES[1:]]

    def _values(self, key: MetricKey) -> list[float]:
        return [v for row in self.rows if (v := cost(row, key)) is not None]

    def points(self, key: MetricKey) -> list[ParetoPoint]:
        """The runs that have this cost, the newest first."""
        points = [point for row in self.rows if (point := _point(row, key))]
        best = {p.run for p in self.front(points, key)}
        return [p for i, p in enumerate(points) if i < MAX_POINTS or p.run in best]

    @staticmethod
    def front(points: Sequence[ParetoPoint], key: MetricKey) -> list[ParetoPoint]:
        """Those on the Pareto front, the lowest perplexity first."""
        front = pareto_front(points, metric(key).better == "higher")
        return sorted(front, key=lambda point: point.y)


def _point(row: RunRow, key: MetricKey) -> ParetoPoint | None:
    x, y = cost(row, key), row.figures.final()
    if x is None or y is None:
        return None
    label = " · ".join(setting_summary(row.job)) or row.job.name
    speed = row.figures.final(TOKENS_PER_SECOND)
    return ParetoPoint(row.job.run, label, kind_title(row.job), x, y, speed)


def _spread(values: Sequence[float]) -> float:
    largest = max(map(abs, values), default=0.0)
    return (max(values) - min(values)) / largest if largest else 0.0


def cost(row: RunRow, key: MetricKey) -> float | None:
    """A figure of a run that can stand on the horizontal axis."""
    return row.size if key == SIZE else row.figures.final(key)


def groups(rows: Sequence[RunRow]) -> list[ComparableRuns]:
    by_conditions: dict[tuple[str, ...], list[RunRow]] = {}
    for row in rows:
        if row.job.state == State.SUCCEEDED and (key := comparable_by(row)):
            by_conditions.setdefault(key, []).append(row)
    largest_first = sorted(by_conditions.values(), key=len, reverse=True)
    return [ComparableRuns(same[0].job.run, _label(same[0]), same) for same in largest_first]


def _label(row: RunRow) -> str:
    figure = row.figures.final_row(PERPLEXITY)
    details = (figure.details if figure else None) or {}
    model = base_model(row.job).rstrip("/").rsplit("/", 1)[-1]
    parts = [model, str(details.get("corpus", "unknown text"))]
    if details.get("context"):
        windows = f"{details['windows']} × " if details.get("windows") else ""
        parts.append(f"{windows}{details['context']} tokens")
    return " · ".join(parts)


def chosen_group(options: Sequence[ComparableRuns], key: str) -> ComparableRuns | None:
    named = (g for g in options if key in {row.job.run for row in g.rows})
    return next(named, options[0] if options else None)
