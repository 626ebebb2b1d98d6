"""All runs with their results, as the table, the filter, the comparison and the overview see them.

Results are many and change seldom: they are read once for all open pages, until a run has recorded
one or changed its state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from backend.settings import settings
from backend.store import queries
from backend.store.session import now_ms
from backend.store.tables import Job
from ui.runs.results import ResultRow, RunResults, kind_of, kind_title, setting_summary

ALL = 1_000_000


@dataclass(frozen=True)
class RunRow:
    """One run, its results, and the bytes on disk of the model it saved."""

    job: Job
    figures: RunResults
    now: int
    size: int | None = None

    @property
    def text(self) -> str:
        """What a full-text search covers, lower case."""
        job = self.job
        model = str(job.config.get("model", ""))
        parts = (
            job.run,
            job.name,
            kind_title(job),
            model,
            *setting_summary(job),
            job.state,
            job.owner,
        )
        return " ".join([*parts, *(job.tags or ()), job.note or ""]).lower()


def rows(
    jobs: Iterable[Job], results: Iterable[ResultRow], sizes: Mapping[int, int] | None = None
) -> list[RunRow]:
    """Runs with their results, in the order given."""
    by_job = _by_job(results)
    now = now_ms()
    return [
        RunRow(j, RunResults(kind_of(j), by_job.get(j.id, ()), j), now, (sizes or {}).get(j.id))
        for j in jobs
    ]


def _by_job(results: Iterable[ResultRow]) -> dict[int, list[ResultRow]]:
    by_job: dict[int, list[ResultRow]] = {}
    for result in results:
        by_job.setdefault(result.job_id, []).append(result)
    return by_job


def all_rows() -> list[RunRow]:
    """Every run, the newest first."""
    figures, sizes = _measured(settings().url, queries.figures_mark())
    now, none = now_ms(), RunResults(None, ())
    return [
        RunRow(j, figures.get(j.id) or none, now, sizes.get(j.id)) for j in queries.jobs(limit=ALL)
    ]


@lru_cache(maxsize=2)
def _measured(_url: str, _mark: tuple[int, int]) -> tuple[dict[int, RunResults], dict[int, int]]:
    """Job id -> results, and job id -> size."""
    jobs = {j.id: j for j in queries.jobs(limit=ALL)}
    results = {
        i: RunResults(kind_of(jobs[i]), rows, jobs[i])
        for i, rows in _by_job(queries.all_figures()).items()
        if i in jobs  # else it is newer than the list
    }
    return results, queries.model_bytes()


def chosen(rows: Sequence[RunRow], runs: Iterable[str]) -> list[RunRow]:
    """The rows of these runs, in that order; unknown and repeated names are left out."""
    by_name = {row.job.run: row for row in rows}
    return [by_name[run] for run in dict.fromkeys(runs) if run in by_name]
