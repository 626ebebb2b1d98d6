"""All read queries of the web interface, the command line and the supervisor."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from sys import intern
from typing import Any, NamedTuple, TypeVarTuple

from sqlalchemy import Row, Select, Text, cast, exists, func, select
from sqlalchemy.orm import Session

from backend.errors import NotFoundError
from backend.metric_key import KEY_COLUMNS, MetricKey
from backend.store.dialects import dialect_of
from backend.store.json_column import DamagedJson, read_object
from backend.store.session import fetched, fetched_rows, fetched_value, reading
from backend.store.states import ACTIVE, LIVE, RESUMABLE, State
from backend.store.tables import (
    EXAMPLE,
    Artifact,
    Attempt,
    DecoderRow,
    Event,
    Job,
    MessageRow,
    MetricPoint,
    ProfileRow,
    Result,
    SavedView,
    StepTime,
    TensorRow,
    config_hash,
    example_number,
    run_name,
)

Columns = TypeVarTuple("Columns")
MAX_VARIABLES = 5_000  # variables per statement
SHOWN = Job.removed_at.is_(None)
POINT_COLUMNS = [getattr(MetricPoint, name) for name in (*KEY_COLUMNS, "step", "value", "at")]
PROFILE_COLUMNS = ("tensor", "block", "module", "stage", "name", "step")


def batched(ids: Iterable[int], size: int) -> Iterator[list[int]]:
    """Split ids into lists of at most `size`."""
    remaining = iter(ids)
    while batch := [*islice(remaining, size)]:
        yield batch


def rows_among(
    session: Session, query: Select[*Columns], column: Any, ids: Iterable[int]
) -> Iterator[Row[*Columns]]:
    """The rows of a query whose column has one of these ids, of which there may be many."""
    for batch in batched(ids, MAX_VARIABLES):
        yield from session.execute(query.where(dialect_of(session).among(column, batch)))


def job_id(run: str | int) -> int:
    """The job id 42 from 42, "42" or "sds-0042".

    Raises:
        NotFoundError: the text is not a run id, or names another kind than that of the run.
    """
    kind, number = _parse_run(run)
    if kind:
        actual_kind = fetched_value(select(Job.kind).where(Job.id == number))
        _check_kind(run, kind, actual_kind, number)
    return number


def job(run: str | int) -> Job:
    """The job row of a run.

    Raises:
        NotFoundError: there is no such run.
    """
    kind, number = _parse_run(run)
    with reading() as session:
        row = session.get(Job, number)
    if row is None:
        raise NotFoundError(f"There is no run {run}.", "", "`slimscope list` shows all runs.")
    _check_kind(run, kind, row.kind, number)
    return row


def plan(run: str | int) -> dict[str, Any] | None:
    """The plan of a run as JSON data; None for a kind without plans.

    Raises:
        NotFoundError: there is no such run.
    """
    return fetched_value(select(Job.plan).where(Job.id == job_id(run)))


def plans(ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Plans by job id; runs without a plan are omitted."""
    query = select(Job.id, Job.plan).where(Job.plan.is_not(None))
    with reading() as session:
        return dict(map(tuple, rows_among(session, query, Job.id, ids)))


def _parse_run(run: str | int) -> tuple[str, int]:
    """Kind and number of "sds-0042"; an empty kind for a number without one."""
    if isinstance(run, int):
        return "", run
    if example := re.fullmatch(rf"([a-z][a-z0-9]*)-{EXAMPLE}(?:-([2-9]))?", run.strip()):
        return example[1], example_number(example[1], int(example[2] or 1))
    match = re.fullmatch(r"(?:([a-z][a-z0-9]*)-)?0*(\d{1,15})", run.strip())
    if not match:
        raise NotFoundError(f"{run[:40]!r} is not a run id.", "", "Run ids look like sds-0042.")
    return match[1] or "", int(match[2])


def _check_kind(run: str | int, kind: str, actual_kind: str | None, number: int) -> None:
    """Raise `NotFoundError` if the kind in a run id is not the kind of the run."""
    if kind and actual_kind is not None and run_name(actual_kind, number) != run_name(kind, number):
        raise NotFoundError(
            f"There is no run {run}.",
            f"Run {number} is {run_name(actual_kind, number)}.",
            "Check the kind of the run.",
        )


def jobs(
    states: Iterable[State] | None = None, kind: str | None = None, limit: int = 500
) -> list[Job]:
    """Runs, newest first."""
    query = select(Job).where(SHOWN).order_by(Job.id.desc()).limit(limit)
    if states is not None:
        query = query.where(Job.state.in_([*states]))
    if kind is not None:
        query = query.where(Job.kind == kind)
    return fetched(query)


def sweep(run: str | int) -> list[Job]:
    """All runs of the sweep of a run, oldest first; empty for a run without a sweep."""
    first = select(Job.sweep).where(Job.id == job_id(run)).scalar_subquery()
    return fetched(select(Job).where(SHOWN, Job.sweep == first).order_by(Job.id))


def existing_runs(kind: str, configs: Iterable[dict[str, Any]]) -> list[Job]:
    """The newest queued, running or succeeded run of each config, for those that have one."""
    hashes = [config_hash(kind, config) for config in configs]
    newest = (
        select(func.max(Job.id))
        .where(SHOWN, Job.config_hash.in_(hashes), Job.state.in_([*ACTIVE, State.SUCCEEDED]))
        .group_by(Job.config_hash)
    )
    return fetched(select(Job).where(Job.id.in_(newest)).order_by(Job.id))


def reproductions(run: str | int) -> list[Job]:
    """The runs that repeat this one, oldest first."""
    return fetched(select(Job).where(SHOWN, Job.parent == job_id(run)).order_by(Job.id))


def cursor() -> tuple[Any, ...]:
    """A value that changes with the data on the pages, which redraw only then."""
    events = select(func.count(), func.max(Event.id)).select_from(Event)
    active = select(Job).where(Job.state.in_([*ACTIVE])).order_by(Job.id).subquery()
    states = func.aggregate_strings(active.c.state, ",")
    progress = select(func.sum(active.c.done), states).select_from(active)
    messages = select(func.count(), func.max(MessageRow.id)).select_from(MessageRow)
    with reading() as session:
        rows = (session.execute(query).first() or () for query in (events, progress, messages))
        return tuple(value for row in rows for value in row)


def attempts(run: str | int) -> list[Attempt]:
    """All attempts of a run, oldest first."""
    return fetched(select(Attempt).where(Attempt.job_id == job_id(run)).order_by(Attempt.n))


def events(run: str | int) -> list[Event]:
    """Events of a run, oldest first."""
    return fetched(select(Event).where(Event.job_id == job_id(run)).order_by(Event.id))


class StoredResult(NamedTuple):
    """A row of `Result`. `metric` has no stage; `details` is shared with other rows: read only."""

    job_id: int
    stage: str
    metric: MetricKey
    value: float
    stderr: float | None
    n: int | None
    details: dict[str, Any]


def results(runs: Iterable[str | int]) -> list[StoredResult]:
    """The results of runs.

    Rows share their few different names and details, which saves memory."""
    key_columns = (Result.job_id, Result.stage, Result.family, Result.series)
    query = select(*key_columns, Result.value, Result.stderr, Result.n, cast(Result.details, Text))
    query = query.order_by(Result.job_id, Result.family, Result.series, Result.stage)
    key, details = lru_cache(1024)(MetricKey), lru_cache(read_object)
    with reading() as session:
        rows = rows_among(session, query, Result.job_id, map(job_id, runs))
        return [
            StoredResult(
                job, intern(stage), key(family, "", series), value, stderr, n, details(text)
            )
            for job, stage, family, series, value, stderr, n, text in rows
        ]


ResultKeys = frozenset[tuple[str, MetricKey]]  # stage and metric of each result of a run
# separators of an aggregated text; a damaged row whose names contain them is ignored
FIELD_SEPARATOR, ROW_SEPARATOR = "\x1f", "\x1e"


def result_keys(ids: Iterable[int]) -> dict[int, ResultKeys]:
    """Stages and metrics of the results of runs by job id; runs without results are omitted.

    Runs that measured the same share one object."""
    key = Result.stage + FIELD_SEPARATOR + Result.family + FIELD_SEPARATOR + Result.series
    aggregated = func.aggregate_strings(key, ROW_SEPARATOR)
    query = select(Result.job_id, aggregated).group_by(Result.job_id)
    with reading() as session:
        rows = rows_among(session, query, Result.job_id, ids)
        return {job: _parse_result_keys(text) for job, text in rows}


@lru_cache(1024)
def _parse_result_keys(text: str) -> ResultKeys:
    rows = (row.split(FIELD_SEPARATOR) for row in text.split(ROW_SEPARATOR))
    return frozenset((row[0], MetricKey(row[1], "", row[2])) for row in rows if len(row) == 3)


def step_times(runs: Sequence[str | int]) -> list[StepTime]:
    """The durations of the steps of runs, by run and step."""
    query = select(StepTime).where(StepTime.job_id.in_([job_id(run) for run in runs]))
    return fetched(query.order_by(StepTime.job_id, StepTime.step))


def decoder_rows(run: str | int) -> list[DecoderRow]:
    """The decoder results of a benchmark, by decoder."""
    query = select(DecoderRow).where(DecoderRow.job_id == job_id(run))
    return fetched(query.order_by(DecoderRow.decoder))


def changed_since(event: int, job_id: int) -> tuple[int, set[int]]:
    """The id of the newest event, and the ids of jobs whose row or results may have changed.

    Args:
        event: newest event that the caller has read; jobs with later events may have changed.
        job_id: newest job that the caller has read; later jobs and live jobs count as changed.
    """
    with_events = select(Event.job_id).where(Event.id > event)
    live_or_new = select(Job.id).where(Job.state.in_([*LIVE]) | (Job.id > job_id))
    with reading() as session:
        newest = session.scalar(select(func.max(Event.id))) or 0
        return newest, {*session.scalars(with_events.union(live_or_new))}


class RunHead(NamedTuple):
    """The fields of a run that filters, lists and the search box need for every run."""

    id: int
    kind: str
    name: str
    state: str
    config: dict[str, Any]
    tags: list[str]
    sweep: int | None
    created_at: int
    archived_at: int | None
    removed_at: int | None
    purged: bool

    @property
    def run(self) -> str:
        """The name of the run, such as sds-0042."""
        return run_name(self.kind, self.id)


def run_heads(ids: Iterable[int]) -> list[RunHead]:
    """The heads of runs, in no particular order; unknown ids are omitted."""
    query = select(*[getattr(Job, name) for name in RunHead._fields])
    with reading() as session:
        return [RunHead._make(row) for row in rows_among(session, query, Job.id, ids)]


def examples() -> set[int]:
    """The ids of the examples, the only runs whose rows can disappear."""
    return {*fetched(select(Job.id).where(Job.id < 0))}


def example_count() -> int:
    """Number of examples that were not removed."""
    return fetched_value(select(func.count()).where(Job.id < 0, Job.removed_at.is_(None))) or 0


def jobs_by_id(ids: Iterable[int]) -> list[Job]:
    """The jobs with these ids, in no particular order; unknown ids are omitted."""
    with reading() as session:
        return [job for (job,) in rows_among(session, select(Job), Job.id, ids)]


def figures_mark() -> tuple[int, int]:
    """A value that changes with new results or events, but not with progress."""
    with reading() as session:
        newest = session.scalar(select(func.max(Event.id))) or 0
        return newest, session.scalar(select(func.count()).select_from(Result)) or 0


def model_bytes(ids: Iterable[int]) -> dict[int, int]:
    """Size of the saved model in bytes by job id; runs without a model are omitted."""
    query = select(Artifact.job_id, func.sum(Artifact.bytes)).where(Artifact.kind == "model")
    query = query.group_by(Artifact.job_id)
    with reading() as session:
        return {job: int(size) for job, size in rows_among(session, query, Artifact.job_id, ids)}


def runs_from(run: str, limit: int) -> list[Job]:
    """The newest runs whose input is the model or the drafter that `run` saved."""
    mentions_run = cast(Job.config, Text).contains(run, autoescape=True)
    query = select(Job).where(SHOWN, mentions_run).order_by(Job.id.desc())

    def uses_run(job: Job) -> bool:
        model, drafters = job.config.get("model"), str(job.config.get("drafters") or "")
        return model == run or run in drafters.replace(",", " ").split()

    with reading() as session:
        return [*islice(filter(uses_run, session.scalars(query)), limit)]


def all_run_names() -> set[str]:
    """The names of all runs."""
    return {run_name(*row) for row in fetched_rows(select(Job.kind, Job.id))}


def unmeasured_runs(limit: int) -> list[Job]:
    """Runs that have ended but whose disk space is unknown, newest first."""
    query = select(Job).where(Job.state.not_in([*ACTIVE]), Job.disk_bytes.is_(None))
    return fetched(query.order_by(Job.id.desc()).limit(limit))


def resumable_before(moment: int) -> list[Job]:
    """Runs that did not succeed and ended before a moment, oldest first."""
    query = select(Job).where(Job.state.in_([*RESUMABLE]), Job.finished_at < moment)
    return fetched(query.order_by(Job.id))


def removed_before(moment: int) -> list[Job]:
    """Runs deleted before a moment (UTC milliseconds since 1970) and not yet purged."""
    query = select(Job).where(Job.removed_at < moment, Job.purged.is_(False))
    return fetched(query.order_by(Job.removed_at, Job.id))


def largest(limit: int) -> list[Job]:
    """The runs with the largest disk space, among those that have ended."""
    query = select(Job).where(SHOWN, Job.disk_bytes > 0).order_by(Job.disk_bytes.desc(), Job.id)
    return fetched(query.limit(limit))


def newest_event_at() -> int:
    """Time of the newest event, UTC milliseconds since 1970; 0 without events."""
    return fetched_value(select(Event.at).order_by(Event.id.desc()).limit(1)) or 0


def views() -> list[SavedView]:
    """Saved views, sorted by name."""
    return fetched(select(SavedView).order_by(SavedView.name))


def artifacts(run: str | int) -> list[Artifact]:
    """The artifacts of a run, oldest first."""
    return fetched(select(Artifact).where(Artifact.job_id == job_id(run)).order_by(Artifact.id))


def curve_points(run: str | int) -> list[Row[Any]]:
    """All curve points of a run, with the columns `POINT_COLUMNS`."""
    query = select(*POINT_COLUMNS).where(MetricPoint.job_id == job_id(run))
    return [*fetched_rows(query.order_by(*POINT_COLUMNS[: 1 + len(KEY_COLUMNS)]))]


def tensor_rows(run: str | int) -> list[dict[str, Any]]:
    """Tensor statistics of a run, one row per tensor, stage and step.

    A row has tensor, block, module, stage, step, n, zeros, below, above, zero_share, and every
    further statistic of the run by name (None if missing)."""
    columns = ("tensor", "block", "module", "stage", "step", "n", "zeros", "below", "above")
    query = (
        select(*[getattr(TensorRow, column) for column in columns], TensorRow.stats)
        .where(TensorRow.job_id == job_id(run))
        .order_by(TensorRow.block, TensorRow.module, TensorRow.stage, TensorRow.step)
    )
    rows = [dict(row._mapping) for row in fetched_rows(query)]
    rows = [row for row in rows if row["n"] and not isinstance(row["stats"], DamagedJson)]
    names = dict.fromkeys(name for row in rows for name in row["stats"])
    for row in rows:
        stats = row.pop("stats")
        row["zero_share"] = row["zeros"] / row["n"]
        row |= {name: stats.get(name) for name in names if name not in row}
    return rows


def profile_rows(run: str | int) -> list[dict[str, Any]]:
    """The recorded profiles of a run, with the columns `PROFILE_COLUMNS`."""
    query = (
        select(*[getattr(ProfileRow, column) for column in PROFILE_COLUMNS])
        .where(ProfileRow.job_id == job_id(run))
        .order_by(
            ProfileRow.block, ProfileRow.module, ProfileRow.name, ProfileRow.step, ProfileRow.stage
        )
    )
    return [dict(row._mapping) for row in fetched_rows(query)]


def tensor_names(run: str | int) -> list[tuple[str, int, str]]:
    """Tensor, block and module of each tensor with statistics, in the order of the model."""
    columns = (TensorRow.tensor, TensorRow.block, TensorRow.module)
    query = select(*columns).where(TensorRow.job_id == job_id(run)).distinct()
    rows = fetched_rows(query.order_by(TensorRow.block, TensorRow.module))
    return [row._tuple() for row in rows]


def runs_with_weights(limit: int | None = None) -> list[Job]:
    """Runs with recorded weight statistics, newest first."""
    has_weights = exists().where(TensorRow.job_id == Job.id)
    return fetched(select(Job).where(SHOWN, has_weights).order_by(Job.id.desc()).limit(limit))


def _mark(run: str | int, *tables: type[TensorRow | Result | ProfileRow]) -> tuple[Any, ...] | None:
    """The name of a run and its number of rows in each table; None if there is no such run."""
    try:
        row = job(run)
    except NotFoundError:
        return None
    counts = (select(func.count()).where(table.job_id == row.id) for table in tables)
    with reading() as session:
        return row.run, *map(session.scalar, counts)


def weights_mark(run: str | int) -> tuple[Any, ...] | None:
    """A value that changes with new statistics or results, but not with progress; None if there is
    no such run."""
    return _mark(run, TensorRow, Result)


def runs_with_profile(name: str) -> list[Job]:
    """Runs with a recorded profile of that name, newest first."""
    has_profile = exists().where(ProfileRow.job_id == Job.id, ProfileRow.name == name)
    return fetched(select(Job).where(SHOWN, has_profile).order_by(Job.id.desc()))


def profiles_mark(run: str | int) -> tuple[Any, ...] | None:
    """A value that changes with new profiles; None if there is no such run."""
    return _mark(run, ProfileRow)
