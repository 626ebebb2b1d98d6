"""What is best so far: runs that can be compared with one another, and their Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from backend.store.states import State
from jobs.metrics import (
    BITS_PER_WEIGHT,
    PERPLEXITY,
    SPEED_UP,
    TOKENS_PER_SECOND,
    ZERO_SHARE,
    metric,
)
from ui.pages.home.pareto_chart import ParetoPoint, pareto_front
from ui.runs.deltas import comparable_by
from ui.runs.results import base_model, kind_title, setting_summary
from ui.runs.rows import RunRow

AXES = ("size", ZERO_SHARE, BITS_PER_WEIGHT, SPEED_UP, TOKENS_PER_SECOND)
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
    def axes(self) -> list[str]:
        """Costs by which the runs differ; then those that at least one run has."""
        families = {n for row in self.rows for n in row.figures.final_names if "bytes/" in n}
        names = [AXES[0], *sorted(families), *AXES[1:]]
        spans = {name: (min(v), max(v)) for name in names if (v := self._values(name))}
        differing = [n for n, (lo, hi) in spans.items() if hi - lo > MIN_SPREAD * max(-lo, hi)]
        return differing + [name for name in spans if name not in differing]

    def _values(self, name: str) -> list[float]:
        return [v for row in self.rows if (v := cost(row, name)) is not None]

    def points(self, name: str) -> list[ParetoPoint]:
        points = [point for row in self.rows if (point := _point(row, name))]
        best = {p.run for p in self.front(points, name)}
        return [p for i, p in enumerate(points) if i < MAX_POINTS or p.run in best]

    @staticmethod
    def front(points: Sequence[ParetoPoint], name: str) -> list[ParetoPoint]:
        front = pareto_front(points, metric(name).better == "higher")
        return sorted(front, key=lambda point: point.y)


def _point(row: RunRow, name: str) -> ParetoPoint | None:
    x, y = cost(row, name), row.figures.final()
    if x is None or y is None:
        return None
    label = " · ".join(setting_summary(row.job)) or row.job.name
    speed = row.figures.final(TOKENS_PER_SECOND)
    return ParetoPoint(row.job.run, label, kind_title(row.job), x, y, speed)


def cost(row: RunRow, name: str) -> float | None:
    return row.size if name == "size" else row.figures.final(name)


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
