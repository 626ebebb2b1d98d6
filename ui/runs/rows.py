"""All runs with their results, for the table, the filter, comparisons and the home page.

Rows are cached for all open pages. A row is read again only if its run is live or had an event.
Jobs and results are loaded lazily in batches, since most pages show a few runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from itertools import islice
from threading import Lock

from backend.queue.actor import Actor
from backend.settings import settings
from backend.store import queries
from backend.store.queries import ResultKeys, RunHead, StoredResult
from backend.store.session import now_ms
from backend.store.states import LIVE
from backend.store.tables import Job
from ui.runs.results import RunResults, kind_of, kind_title, setting_summary

BATCH_RUNS = 200  # runs per query
NEWEST_RUNS = 20  # searched for a run by name
NO_RESULTS: ResultKeys = frozenset()


@dataclass(frozen=True, eq=False)
class RunShape:
    """Names and types of the values of a run, without the values.

    Runs with equal shapes share one object; there are far fewer shapes than runs.

    Attributes:
        kind: name of the run's kind.
        fields: names of the config fields.
        types: types of their values.
        result_keys: stage and metric of each result.
    """

    kind: str
    fields: tuple[str, ...]
    types: tuple[type, ...]
    result_keys: ResultKeys

    @property
    def settings(self) -> Iterator[tuple[str, bool]]:
        """Name of each config field, and True if its value is a number (booleans are not)."""
        return (
            (name, value_type in (int, float))
            for name, value_type in zip(self.fields, self.types, strict=True)
        )


_shape = lru_cache(maxsize=4096)(RunShape)


@dataclass(frozen=True, eq=False)
class RunRow:
    """One run with its results, which are loaded when they are first used.

    Attributes:
        head: the fields that every list needs.
        result_keys: stage and metric of each result.
        jobs: loads the jobs of the row's batch, by id.
        results: loads the results of the row's batch, by job id.
        size: size of the saved model in bytes; None without one.
    """

    head: Job | RunHead
    result_keys: ResultKeys
    jobs: Callable[[], Mapping[int, Job]]
    results: Callable[[], Mapping[int, Sequence[StoredResult]]]
    size: int | None = None

    @cached_property
    def job(self) -> Job:
        """The complete job row."""
        return self.jobs()[self.head.id]

    @cached_property
    def figures(self) -> RunResults:
        """The results of the run."""
        return RunResults(kind_of(self.job), self.results().get(self.job.id, ()), self.job)

    @property
    def now(self) -> int:
        """The present time, UTC milliseconds since 1970."""
        return now_ms()

    @cached_property
    def shape(self) -> RunShape:
        """Names and types of the run's values."""
        head = self.head
        types = tuple(map(type, head.config.values()))
        return _shape(head.kind, tuple(head.config), types, self.result_keys)

    @cached_property
    def search_names(self) -> str:
        """Lower-case names of the run, which the search box searches."""
        head = self.head
        model = str(head.config.get("model", ""))
        return " ".join([head.run, head.name, model, head.state, *(head.tags or ())]).lower()

    @cached_property
    def text(self) -> str:
        """Lower-case text that the filter searches."""
        job = self.job
        details = (kind_title(job), *setting_summary(job), job.owner, job.note or "")
        return f"{self.search_names} {' '.join(details)}".lower()


def rows(jobs: Iterable[Job], results: Iterable[StoredResult]) -> list[RunRow]:
    """Rows of jobs and results that are loaded already."""
    grouped = by_job(results)
    keys = {job: frozenset((r.stage, r.metric) for r in group) for job, group in grouped.items()}
    jobs_by_id = {job.id: job for job in jobs}
    return [
        RunRow(job, keys.get(job.id, NO_RESULTS), lambda: jobs_by_id, lambda: grouped)
        for job in jobs_by_id.values()
    ]


def by_job(results: Iterable[StoredResult]) -> dict[int, list[StoredResult]]:
    """Results grouped by job id."""
    grouped: dict[int, list[StoredResult]] = {}
    for result in results:
        grouped.setdefault(result.job_id, []).append(result)
    return grouped


def all_rows(*, deleted: bool = False) -> list[RunRow]:
    """All runs, newest first; `deleted` includes those in the bin."""
    rows = _cache(settings().url).rows()
    return rows if deleted else [row for row in rows if not row.head.removed_at]


def newest_of(actor: Actor, name: str) -> Job | None:
    """The newest run of `actor` with this name, among the newest runs."""
    named = (row for row in islice(all_rows(), NEWEST_RUNS) if row.head.name == name)
    return next((row.job for row in named if row.job.owner == actor.name), None)


class RunCache:
    """Rows of all runs, shared by all open pages."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._event = 0  # id of the newest event that was read
        self._live: set[int] = set()
        self._rows: dict[int, RunRow] = {}

    def rows(self) -> list[RunRow]:
        """All rows, newest first, after reading the runs that may have changed.

        A run that is no longer live is read once more, for the values it ended with."""
        with self._lock:
            newest = max(self._rows, default=0)
            self._event, changed = queries.changed_since(self._event, newest)
            changed |= self._live
            self._live = set()
            for vanished in {number for number in self._rows if number < 0} - queries.examples():
                del self._rows[vanished]
            for numbers in queries.batched(sorted(changed), BATCH_RUNS):  # bounds the memory
                heads = queries.run_heads(numbers)  # first: an ended run has all its results then
                result_keys, sizes = queries.result_keys(numbers), queries.model_bytes(numbers)
                jobs = cache(partial(_jobs, tuple(numbers)))
                results = cache(partial(_results, tuple(numbers)))
                for head in heads:
                    keys = result_keys.get(head.id, NO_RESULTS)
                    self._rows[head.id] = RunRow(head, keys, jobs, results, sizes.get(head.id))
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
    """Rows of the named runs in the given order; unknown and repeated names are omitted."""
    names = dict.fromkeys(runs)
    numbers = {run.rpartition("-")[2].lstrip("0") for run in names}
    # the names of examples, whose ids are negative, have no number
    numbers |= {str(row.head.id) for row in rows if row.head.id < 0}
    by_name = {row.head.run: row for row in rows if names and str(row.head.id) in numbers}
    return [by_name[run] for run in names if run in by_name]
