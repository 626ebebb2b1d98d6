"""All runs with their results, for table, filter, comparison and home. They are read once for all
open pages, and again only where a run is live or has had an event since; their figures when the
first of a batch is asked for: most pages show those of a few runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from threading import Lock

from backend.settings import settings
from backend.store import queries
from backend.store.queries import Places, StoredResult
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
        return ((name, of in (int, float)) for name, of in zip(self.fields, self.types, strict=True))


_shape = lru_cache(maxsize=4096)(RunShape)


@dataclass(frozen=True, eq=False)
class RunRow:
    """One run, its results, and the size of the saved model in bytes."""

    job: Job
    places: Places
    stored: Callable[[], Mapping[int, Sequence[StoredResult]]]  # of this run and others, by job id
    size: int | None = None

    @cached_property
    def figures(self) -> RunResults:
        return RunResults(kind_of(self.job), self.stored().get(self.job.id, ()), self.job)

    @property
    def now(self) -> int:
        return now_ms()

    @cached_property
    def shape(self) -> RunShape:
        job = self.job
        types = tuple(map(type, job.config.values()))
        return _shape(job.kind, tuple(job.config), types, self.places, bool(job.tags))

    @cached_property
    def names(self) -> str:
        """What it is known by, in lower case: for the search box."""
        job = self.job
        model = str(job.config.get("model", ""))
        return " ".join([job.run, job.name, model, job.state, *(job.tags or ())]).lower()

    @cached_property
    def text(self) -> str:
        """Lower-case text of the full-text search."""
        job = self.job
        more = (kind_title(job), *setting_summary(job), job.owner, job.note or "")
        return f"{self.names} {' '.join(more)}".lower()


def rows(jobs: Iterable[Job], results: Iterable[StoredResult]) -> list[RunRow]:
    stored = by_job(results)
    places = {job: frozenset((r.stage, r.metric) for r in of) for job, of in stored.items()}
    return [RunRow(job, places.get(job.id, NOWHERE), lambda: stored) for job in jobs]


def by_job(results: Iterable[StoredResult]) -> dict[int, list[StoredResult]]:
    grouped: dict[int, list[StoredResult]] = {}
    for result in results:
        grouped.setdefault(result.job_id, []).append(result)
    return grouped


def all_rows(*, deleted: bool = False) -> list[RunRow]:
    rows = _cache(settings().url).rows()
    return rows if deleted else [row for row in rows if not row.job.removed_at]


class RunCache:
    def __init__(self) -> None:
        self._lock = Lock()
        self._event = 0  # the newest that is known
        self._live: set[int] = set()
        self._rows: dict[int, RunRow] = {}

    def rows(self) -> list[RunRow]:
        with self._lock:
            self._update()
            return [self._rows[number] for number in sorted(self._rows, reverse=True)]

    def _update(self) -> None:
        """Reads what may have changed. A run that has just ended had an event then."""
        self._event, changed = queries.changed_since(self._event, max(self._rows, default=0))
        changed |= self._live
        self._live = set()
        for numbers in queries.batched(sorted(changed), BATCH):  # it needs memory, too
            jobs, places = queries.jobs_by_id(numbers), queries.result_places(numbers)
            stored = cache(partial(_results, tuple(numbers)))
            sizes = queries.model_bytes(numbers)
            for job in jobs:
                at = places.get(job.id, NOWHERE)
                self._rows[job.id] = RunRow(job, at, stored, sizes.get(job.id))
                if job.purged:
                    del self._rows[job.id]
            self._live |= {job.id for job in jobs if job.state in LIVE}


def _results(numbers: Sequence[int]) -> dict[int, list[StoredResult]]:
    return by_job(queries.results(numbers))


@lru_cache(maxsize=2)
def _cache(_url: str) -> RunCache:
    return RunCache()


def chosen(rows: Sequence[RunRow], runs: Iterable[str]) -> list[RunRow]:
    """Rows of these runs in the given order; unknown and repeated names are left out."""
    wanted = dict.fromkeys(runs)
    numbers = {run.rpartition("-")[2].lstrip("0") for run in wanted}
    numbers |= {str(row.job.id) for row in rows if row.job.id < 0}  # examples have no number
    by_name = {row.job.run: row for row in rows if wanted and str(row.job.id) in numbers}
    return [by_name[run] for run in wanted if run in by_name]
