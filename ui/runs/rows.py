"""All runs with their figures, as the table, the filter, the comparison and the overview see them.

Figures change seldom and are many: they are read once for all open pages, until a run has recorded
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
    """One run and its figures.

    Attributes:
        size: bytes on disk of the model it saved; None without one.
    """

    job: Job
    figures: RunResults
    now: int
    size: int | None = None

    @property
    def text(self) -> str:
        """What a word is looked for in, lower case."""
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
    """Runs with their figures, in the order given."""
    found: dict[int, list[ResultRow]] = {}
    for result in results:
        found.setdefault(result.job_id, []).append(result)
    now = now_ms()
    return [
        RunRow(j, RunResults(kind_of(j), found.get(j.id, ()), j), now, (sizes or {}).get(j.id))
        for j in jobs
    ]


def all_rows() -> list[RunRow]:
    """Every run, the newest first."""
    figures, sizes = _measured(settings().url, queries.figures_mark())
    now, none = now_ms(), RunResults(None, ())
    return [
        RunRow(j, figures.get(j.id) or none, now, sizes.get(j.id)) for j in queries.jobs(limit=ALL)
    ]


@lru_cache(maxsize=2)
def _measured(_url: str, _mark: tuple[int, int]) -> tuple[dict[int, RunResults], dict[int, int]]:
    """Job id -> figures, and job id -> size."""
    jobs = {j.id: j for j in queries.jobs(limit=ALL)}
    found: dict[int, list[ResultRow]] = {}
    for result in queries.all_figures():
        found.setdefault(result.job_id, []).append(result)
    sizes = queries.model_bytes()
    figures = {
        i: RunResults(kind_of(jobs[i]), of_run, jobs[i])
        for i, of_run in found.items()
        if i in jobs  # else it is newer than the list
    }
    return figures, sizes


def chosen(all_of_them: Sequence[RunRow], runs: Iterable[str]) -> list[RunRow]:
    """The rows named, in that order; names of no run, and repetitions, are left out."""
    by_name = {row.job.run: row for row in all_of_them}
    return [by_name[run] for run in dict.fromkeys(runs) if run in by_name]
