"""The summary of a sweep: its best combination, ties, and the most important setting."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from markupsafe import Markup

from backend.metric_key import MetricKey
from backend.queue.actor import Actor
from backend.statistics.paired import paired_ratio
from backend.store.tables import Job
from jobs import sweep
from jobs.metrics import PERPLEXITY, Metric, metric, ordered
from jobs.sweep import SweepRow, importance
from jobs.wording import relative_change
from ui.format import number
from ui.runs.actions import Action, available_actions
from ui.runs.columns import NEWEST, Column
from ui.runs.groups import Group
from ui.runs.results import (
    RUN,
    WINDOW_METRICS,
    format_value,
    setting_title,
    stages_of,
    window_losses,
)
from ui.runs.rows import RunRow


@dataclass(frozen=True)
class SweepSummary:
    """The results of a sweep in one metric at the last stage.

    Attributes:
        jobs: its runs.
        metric: the shown metric.
        rows: combinations with their mean and spread over seeds, the best first; empty without
            results.
    """

    jobs: Sequence[Job]
    metric: Metric
    rows: Sequence[SweepRow]

    @property
    def states(self) -> Mapping[str, int]:
        """Number of runs in each state."""
        return Counter(job.state for job in self.jobs)

    @property
    def seeds(self) -> int:
        """Largest number of runs of a combination."""
        return max((row.n for row in self.rows), default=0)

    @cached_property
    def importance(self) -> Mapping[str, float]:
        """Share of the variation that each setting explains alone, largest first."""
        kind = self.jobs[0].kind
        return {setting_title(kind, name): x for name, x in importance(self.rows).items()}

    @cached_property
    def tied(self) -> Sequence[SweepRow]:
        """Combinations that do not differ significantly from the best one."""
        return ties(self.jobs, self.rows, self.metric)

    @cached_property
    def extent(self) -> tuple[float, float]:
        """Lowest and highest mean with its spread."""
        ends = [row.mean + sign * (row.spread or 0) for row in self.rows for sign in (-1, 1)]
        return min(ends), max(ends)

    @property
    def ends(self) -> list[str]:
        """The ends of the scale as text."""
        return [format_value(self.metric, value) for value in self.extent]

    def place(self, value: float) -> float:
        """Position of a value between the limits of `extent`, in percent."""
        low, high = self.extent
        return 100 * (value - low) / ((high - low) or 1.0)

    @property
    def lead(self) -> str:
        """The lead of the best combination over the next: "7.3 % lower than 2:4 1.631"."""
        if len(self.rows) < 2 or not self.rows[1].mean:
            return ""
        best, rival = self.rows[:2]
        value = f"{rival.label} {format_value(self.metric, rival.mean)}"
        if rival in self.tied:
            return f"not significantly different from {value}"
        return f"{relative_change(best.mean, rival.mean)} {value}"

    def mean(self, row: SweepRow) -> str:
        """Mean and spread of a combination."""
        text = format_value(self.metric, row.mean)
        return f"{text} ± {number(self.metric.scale * row.spread, 2)}" if row.spread else text


def cell(column: Column, sweep: SweepSummary, rows: Sequence[RunRow]) -> Markup | str:
    """The cell of a sweep in a column other than its result: the best mean, the newest age, or what
    all of its runs have; else empty."""
    if sweep.rows and column.metric == sweep.metric.key:
        return sweep.mean(sweep.rows[0])
    newest = max(rows, key=lambda row: row.head.id)
    is_shared = len({str(column.value(row)) for row in rows}) == 1
    return column.html(newest) if is_shared or column.key == NEWEST else ""


def summary(group: Group) -> SweepSummary:
    """The summary of the visible runs of a sweep."""
    jobs = sorted((row.job for row in group.rows), key=lambda job: job.id)
    results = [result for row in group.rows for result in row.figures.rows.values()]
    rows = [row for row in sweep.table(jobs, results) if row.stage != RUN]
    keys = ordered(row.metric for row in rows)
    key = PERPLEXITY if PERPLEXITY in keys else next(iter(keys), MetricKey(""))
    shown = metric(key)
    rows = _at_last_stage([row for row in rows if row.metric == key], [*stages_of(jobs[0])])
    return SweepSummary(
        jobs, shown, sorted(rows, key=lambda row: row.mean, reverse=shown.better == "higher")
    )


def _at_last_stage(rows: Sequence[SweepRow], order: Sequence[str]) -> list[SweepRow]:
    last = max(
        (row.stage for row in rows), key=lambda s: (s in order and order.index(s), s), default=""
    )
    return [row for row in rows if row.stage == last]


def ties(jobs: Sequence[Job], rows: Sequence[SweepRow], shown: Metric) -> list[SweepRow]:
    """Combinations whose perplexity does not differ significantly from the best one's, the first of
    `rows`, on the same windows, averaged over seeds; empty where unknown."""
    if shown.key not in WINDOW_METRICS or len(rows) < 2:
        return []
    texts = ((job.environment or {}).get("text") or {} for job in jobs)
    if len({str(each.get("evaluation", {}).get("sha256")) for each in texts}) > 1:
        return []
    stored = {job.id: {n: x.tolist() for n, x in window_losses(job).items()} for job in jobs}
    losses = sweep.mean_losses(jobs, stored, rows[0].stage)
    best, *others = (losses.get(repr(row.values)) for row in rows)
    if best is None:
        return []
    ratios = [paired_ratio(other, best) if other else None for other in others]
    return [
        row
        for row, ratio in zip(rows[1:], ratios, strict=True)
        if ratio and not ratio.is_significant
    ]


def sweep_actions(jobs: Sequence[Job], user: Actor) -> list[Action]:
    """Buttons that cancel or resume all runs of a sweep."""
    return [
        replace(action, name=f"{action.name}-sweep")
        for action in available_actions(jobs, user, "queue")
        if action.name in ("cancel", "resume")
    ]
