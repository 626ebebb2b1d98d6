"""The best combination of a sweep, and which others are not significantly different from it."""

from __future__ import annotations

from collections.abc import Sequence

from backend.evaluation.paired import paired_ratio
from backend.store.tables import Job
from jobs import sweep
from jobs.metrics import Metric
from jobs.sweep import SweepRow
from ui.charts.headlines import lower
from ui.runs.pairs import WINDOW_METRICS, window_losses
from ui.runs.results import format_value


def best_row(rows: Sequence[SweepRow], shown: Metric) -> SweepRow:
    return (max if shown.better == "higher" else min)(rows, key=lambda row: row.mean)


def headline(rows: Sequence[SweepRow], shown: Metric, tied: Sequence[SweepRow] = ()) -> str:
    best = best_row(rows, shown)
    labels = ", ".join(row.label for row in tied)
    others = f"; not significantly different: {labels}" if tied else ""
    return f"Best: {best.label}, {lower(shown.title)} {format_value(shown, best.mean)}{others}"


def ties(jobs: Sequence[Job], rows: Sequence[SweepRow], shown: Metric) -> list[SweepRow]:
    """Combinations whose perplexity does not differ significantly from the best one's on the same
    windows, averaged over seeds; empty where unknown. `rows` are of one stage and metric."""
    if shown.name not in WINDOW_METRICS or len(rows) < 2 or len(_texts(jobs)) > 1:
        return []
    best, stage = best_row(rows, shown), rows[0].stage
    stored = {job.id: {n: x.tolist() for n, x in window_losses(job).items()} for job in jobs}
    losses = sweep.mean_losses(jobs, stored, stage)
    reference = losses.get(repr(best.values))
    if reference is None:
        return []
    ratios = {
        repr(row.values): paired_ratio(losses[repr(row.values)], reference)
        for row in rows
        if row is not best and repr(row.values) in losses
    }
    tied = {key for key, ratio in ratios.items() if ratio and not ratio.told_apart}
    return [row for row in rows if repr(row.values) in tied]


def _texts(jobs: Sequence[Job]) -> set[str]:
    texts = ((job.environment or {}).get("text") for job in jobs)
    return {str((each or {}).get("evaluation", {}).get("sha256")) for each in texts}
