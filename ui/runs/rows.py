"""All runs with their results, as the table, the filter, the comparison and the overview see them.

Runs are many and change seldom: they are read once for all open pages, and again only those that
are live or have had an event since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

from backend.settings import settings
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import LIVE
from backend.store.tables import Job
from ui.runs.results import ResultRow, RunResults, kind_of, kind_title, setting_summary


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
    return _cache(settings().url).rows()


class RunCache:
    """Every run and its results, kept up to date with the database."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._event = 0  # the newest that is known
        self._live: set[int] = set()
        self._jobs: dict[int, Job] = {}
        self._results: dict[int, RunResults] = {}
        self._sizes: dict[int, int] = {}

    def rows(self) -> list[RunRow]:
        """Every run, the newest first."""
        with self._lock:
            self._update()
            now, none = now_ms(), RunResults(None, ())
            return [
                RunRow(self._jobs[i], self._results.get(i, none), now, self._sizes.get(i))
                for i in sorted(self._jobs, reverse=True)
            ]

    def _update(self) -> None:
        """Read again what may have changed. A run that has just ended had an event then."""
        self._event, changed = queries.changed_since(self._event, max(self._jobs, default=0))
        changed |= self._live
        jobs = {job.id: job for job in queries.jobs_by_id(changed)}
        self._live = {i for i, job in jobs.items() if job.state in LIVE}
        self._jobs |= jobs
        self._results |= {
            i: RunResults(kind_of(jobs[i]), results, jobs[i])
            for i, results in queries.figures(jobs).items()
        }
        self._sizes |= queries.model_bytes(jobs)


@lru_cache(maxsize=2)
def _cache(_url: str) -> RunCache:
    return RunCache()


def chosen(rows: Sequence[RunRow], runs: Iterable[str]) -> list[RunRow]:
    """The rows of these runs, in that order; unknown and repeated names are left out."""
    by_name = {row.job.run: row for row in rows}
    return [by_name[run] for run in dict.fromkeys(runs) if run in by_name]
