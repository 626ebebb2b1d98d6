"""What the command line prints of runs: tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from backend.errors import NotFoundError
from backend.metric_key import MetricKey
from backend.store import queries
from backend.store.tables import Job
from jobs import sweep
from jobs.kind import stage_labels
from jobs.metrics import SECONDS
from jobs.record import sweep_rows
from jobs.reproduction import Reproduction


def runs_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """One line a run."""
    table = Table("run", "state", "progress", "model", "name", box=None)
    for row in records:
        state = "damaged" if row["damaged"] else row["state"]
        model = escape(str(row["config"].get("model", "")))
        table.add_row(row["id"], state, f"{row['progress']:.0%}", model, escape(row["name"]))
    return table


def results_table(run: str) -> Table:
    """Every figure of a run."""
    table = Table("metric", "stage", "value", "±", box=None)
    job = queries.job(run)
    names = stage_labels(job.kind)
    if job.kept_stage:
        table.title = f"Kept: {names.get(job.kept_stage, job.kept_stage)}"
    for row in queries.results([run]):
        spread = "" if row.stderr is None else f"{row.stderr:.3g}"
        table.add_row(str(row.metric), names.get(row.stage, row.stage), f"{row.value:.6g}", spread)
    for time in queries.step_times([run]):
        name = str(MetricKey(SECONDS, series=time.step))
        table.add_row(name, "run", f"{time.seconds:.6g}", "")
    return table


def differences_table(comparison: Reproduction) -> Table:
    """What differs between a run and its reproduction."""
    table = Table("what differs", comparison.first, comparison.second, box=None)
    for difference in comparison.differences:
        values = (difference.first, difference.second)
        table.add_row(difference.what, *(escape("–" if v is None else str(v)) for v in values))
    return table


def measured(jobs: Sequence[Job]) -> bool:
    """Whether any run of a sweep has figures."""
    return bool(queries.results([job.id for job in jobs]))


def sweep_table(jobs: Sequence[Job], name: str) -> Table:
    """Mean and spread of one metric: one line a combination and stage.

    Raises:
        NotFoundError: no run of the sweep has measured it.
    """
    rows, metric = sweep_rows(jobs), MetricKey.parse(name)
    if metric not in (found := {row.metric for row in rows}):
        there = f"There are: {', '.join(sorted(map(str, found))) or 'no figures yet'}."
        raise NotFoundError(f"No run of this sweep has measured {name!r}.", "", there)
    names = stage_labels(jobs[0].kind)
    fields = [field for field in sweep.varied(jobs) if field != sweep.SEED]
    table = Table(*fields, "stage", name, "±", "n", box=None)
    for row in rows:
        if row.metric == metric:
            chosen = (escape(str(row.values[field])) for field in fields)
            spread = "" if row.spread is None else f"{row.spread:.3g}"
            stage = names.get(row.stage, row.stage)
            table.add_row(*chosen, stage, f"{row.mean:.6g}", spread, str(row.n))
    return table
