"""All runs with their results, for table, filter, comparison and home. They are read once for all
open pages, and again only where a run is live or has had an event since; jobs and figures when the
first of a batch is asked for: most pages show a few runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from threading import Lock

from backend.settings import settings
from backend.store import queries
from backend.store.queries import Places, RunHead, StoredResult
from backend.store.session import now_ms
from backend.store.states import LIVE
from backend.store.tables import Job
from ui.runs.results import RunResults, kind_of, kind_title, setting_summary

BATCH = 500  # runs read at once
NOWHERE: Places = frozenset()


@dataclass(frozen=True, eq=False)
class RunShape:
    """What a run has values for. Runs with the same values have the same shape, the very object:
    there are far fewer shapes than runs."""

    kind: str
    fields: tuple[str, ...]  # of the config
    types: tuple[type, ...]  # of their values
    places: Places  # stage and metric of its results
    tagged: bool

    @property
    def settings(self) -> Iterator[tuple[str, bool]]:
        """The fields of the config, and whether each is a number; a switch is none."""
        return (
            (name, of in (int, float)) for name, of in zip(self.fields, self.types, strict=True)
        )


_shape = lru_cache(maxsize=4096)(RunShape)


@dataclass(frozen=True, eq=False)
class RunRow:
    """One run, its results, and the size of the saved model in bytes."""

    head: Job | RunHead
    places: Places
    jobs: Callable[[], Mapping[int, Job]]  # this one and others, by id
    stored: Callable[[], Mapping[int, Sequence[StoredResult]]]  # of this run and others, by job id
    size: int | None = None

    @cached_property
    def job(self) -> Job:
        return self.jobs()[self.head.id]

    @cached_property
    def figures(self) -> RunResults:
        return RunResults(kind_of(self.job), self.stored().get(self.job.id, ()), self.job)

    @property
    def now(self) -> int:
        return now_ms()

    @cached_property
    def shape(self) -> RunShape:
        head = self.head
        types = tuple(map(type, head.config.values()))
        return _shape(head.kind, tuple(head.config), types, self.places, bool(head.tags))

    @cached_property
    def names(self) -> str:
        """What it is known by, in lower case: for the search box."""
        head = self.head
        model = str(head.config.get("model", ""))
        return " ".join([head.run, head.name, model, head.state, *(head.tags or ())]).lower()

    @cached_property
    def text(self) -> str:
        """Lower-case text of the full-text search."""
        job = self.job
        more = (kind_title(job), *setting_summary(job), job.owner, job.note or "")
        return f"{self.names} {' '.join(more)}".lower()


def rows(jobs: Iterable[Job], results: Iterable[StoredResult]) -> list[RunRow]:
    stored = by_job(results)
    places = {job: frozenset((r.stage, r.metric) for r in of) for job, of in stored.items()}
    every = {job.id: job for job in jobs}
    return [
        RunRow(job, places.get(job.id, NOWHERE), lambda: every, lambda: stored)
        for job in every.values()
    ]


def by_job(results: Iterable[StoredResult]) -> dict[int, list[StoredResult]]:
    grouped: dict[int, list[StoredResult]] = {}
    for result in results:
        grouped.setdefault(result.job_id, []).append(result)
    return grouped


def all_rows(*, deleted: bool = False) -> list[RunRow]:
    rows = _cache(settings().url).rows()
    return rows if deleted else [row for row in rows if not row.head.removed_at]


class RunCache:
    def __init__(self) -> None:
        self._lock = Lock()
        self._event = 0  # the newest that is known
        self._live: set[int] = set()
        self._rows: dict[int, RunRow] = {}

    def rows(self) -> list[RunRow]:
        """Reads what may have changed. A run that has just ended had an event then."""
        with self._lock:
            newest = max(self._rows, default=0)
            self._event, changed = queries.changed_since(self._event, newest)
            changed |= self._live
            self._live = set()
            for vanished in {number for number in self._rows if number < 0} - queries.examples():
                del self._rows[vanished]
            for numbers in queries.batched(sorted(changed), BATCH):  # it needs memory, too
                places, sizes = queries.result_places(numbers), queries.model_bytes(numbers)
                jobs = cache(partial(_jobs, tuple(numbers)))
                stored = cache(partial(_results, tuple(numbers)))
                for head in queries.run_heads(numbers):
                    at = places.get(head.id, NOWHERE)
                    self._rows[head.id] = RunRow(head, at, jobs, stored, sizes.get(head.id))
                    if head.purged:
                        del self._rows[head.id]
                    elif head.state in LIVE:
                        self._live.add(head.id)
            return [self._rows[number] for number in sorted(self._rows, reverse=True)]


def _jobs(numbers: Sequence[int]) -> dict[int, Job]:
    return {job.id: job for job in queries.jobs_by_id(numbers)}


def _results(numbers: Sequence[int]) -> dict[int, list[StoredResult]]:
    return by_job(queries.results(numbers))


@lru_cache(maxsize=2)
def _cache(_url: str) -> RunCache:
    return RunCache()


def chosen(rows: Sequence[RunRow], runs: Iterable[str]) -> list[RunRow]:
    """Rows of these runs in the given order; unknown and repeated names are left out."""
    wanted = dict.fromkeys(runs)
    numbers = {run.rpartition("-")[2].lstrip("0") for run in wanted}
    numbers |= {str(row.head.id) for row in rows if row.head.id < 0}  # examples have no number
    by_name = {row.head.run: row for row in rows if wanted and str(row.head.id) in numbers}
    return [by_name[run] for run in wanted if run in by_name]
