"""All read queries of the web interface, the CLI and the supervisor. Nothing here writes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from sys import intern
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, Select, Text, case, cast, exists, func, select

from backend.errors import NotFoundError
from backend.store.dialects.choice import dialect_of
from backend.store.needs import waiting
from backend.store.session import database_ms, reading
from backend.store.states import ACTIVE, LIVE, TAKES, Lane, State
from backend.store.tables import (
    CLUSTER,
    EXAMPLE,
    Artifact,
    Attempt,
    DamagedJson,
    DecoderRow,
    Event,
    Job,
    MetricPoint,
    ProfileRow,
    Result,
    SavedView,
    StepTime,
    Supervisor,
    TensorRow,
    config_hash,
    example_number,
    read_object,
    run_name,
)

HOUR_MS = 3_600_000
MAX_VARIABLES = 5_000  # in one statement
ALIVE_MS = 15_000
SILENT_MS = 60_000  # after which a cluster that does not answer is told
STARTS_WITHIN_MS = 30_000
SHOWN = Job.removed_at.is_(None)


def batched(ids: Iterable[int], size: int) -> Iterator[list[int]]:
    """The ids in lists of at most `size`."""
    rest = iter(ids)
    while batch := [*islice(rest, size)]:
        yield batch


def job_id(run: str | int) -> int:
    """The job id 42 from 42, "42" or "sds-0042".

    Raises:
        NotFoundError: the text is not a run id, or the run of that number is of another kind.
    """
    kind, number = _parsed(run)
    if kind:
        with reading() as session:
            stored = session.scalar(select(Job.kind).where(Job.id == number))
        _check_kind(run, kind, stored, number)
    return number


def job(run: str | int) -> Job:
    """The job row of a run.

    Raises:
        NotFoundError: there is no such run.
    """
    kind, number = _parsed(run)
    with reading() as session:
        row = session.get(Job, number)
    if row is None:
        raise NotFoundError(f"There is no run {run}.", "", "`slimscope list` shows all runs.")
    _check_kind(run, kind, row.kind, number)
    return row


def plan(run: str | int) -> dict[str, Any] | None:
    """The plan of a run as it is stored; None of a kind without plans.

    Raises:
        NotFoundError: there is no such run.
    """
    with reading() as session:
        return session.scalar(select(Job.plan).where(Job.id == job_id(run)))


def _parsed(run: str | int) -> tuple[str, int]:
    """Kind and number of "sds-0042"; no kind for a number alone."""
    if isinstance(run, int):
        return "", run
    if example := re.fullmatch(rf"([a-z][a-z0-9]*)-{EXAMPLE}", run.strip()):
        return example[1], example_number(example[1])
    match = re.fullmatch(r"(?:([a-z][a-z0-9]*)-)?0*(\d{1,15})", run.strip())
    if not match:
        raise NotFoundError(f"{run[:40]!r} is not a run id.", "", "Run ids look like sds-0042.")
    return match[1] or "", int(match[2])


def _check_kind(run: str | int, kind: str, stored: str | None, number: int) -> None:
    """Raise `NotFoundError` where the run of that number is of another kind than its name says."""
    if kind and stored is not None and run_name(stored, number) != run_name(kind, number):
        why = f"Run {number} is {run_name(stored, number)}."
        raise NotFoundError(f"There is no run {run}.", why, "Check the kind of the run.")


def jobs(
    states: Iterable[State] | None = None, kind: str | None = None, limit: int = 500
) -> list[Job]:
    """Runs, newest first."""
    query = select(Job).where(SHOWN).order_by(Job.id.desc()).limit(limit)
    if states is not None:
        query = query.where(Job.state.in_([*states]))
    if kind is not None:
        query = query.where(Job.kind == kind)
    with reading() as session:
        return list(session.scalars(query))


def sweep(run: str | int) -> list[Job]:
    """All runs of the sweep that `run` is part of, oldest first; empty for a single run."""
    first = select(Job.sweep).where(Job.id == job_id(run)).scalar_subquery()
    with reading() as session:
        return list(session.scalars(select(Job).where(SHOWN, Job.sweep == first).order_by(Job.id)))


def same(kind: str, configs: Iterable[dict[str, Any]]) -> list[Job]:
    """The newest queued, running or succeeded run of each of these configs."""
    hashes = [config_hash(kind, config) for config in configs]
    newest = (
        select(func.max(Job.id))
        .where(SHOWN, Job.config_hash.in_(hashes), Job.state.in_([*ACTIVE, State.SUCCEEDED]))
        .group_by(Job.config_hash)
    )
    with reading() as session:
        return list(session.scalars(select(Job).where(Job.id.in_(newest)).order_by(Job.id)))


def reproductions(run: str | int) -> list[Job]:
    """The runs that repeat this one, oldest first."""
    query = select(Job).where(SHOWN, Job.parent == job_id(run)).order_by(Job.id)
    with reading() as session:
        return list(session.scalars(query))


def launch_order(now: int, lane: Lane = Lane.SLOTS) -> Select[Job]:
    """Queued jobs that a place of this lane takes, in launch order: priority (+1 per hour of
    waiting), then owners with fewer running jobs, then first come, first served."""
    other = Job.__table__.alias("other")
    running = (
        select(func.count())
        .select_from(other)
        .where(other.c.owner == Job.owner, other.c.state.in_([*LIVE]))
        .correlate(Job)
        .scalar_subquery()
    )
    waited: ColumnElement[Any] = (now - Job.queued_at) / HOUR_MS
    return (
        select(Job)
        .where(Job.state == State.QUEUED, Job.lane.in_(TAKES[lane]))
        .order_by((Job.priority + waited).desc(), running, Job.queued_at, Job.id)
    )


def queued() -> list[Job]:
    """The queue for a slot in launch order, jobs of seconds first: they do not wait for others."""
    with reading() as session:
        jobs = session.scalars(launch_order(database_ms(session)))
        return sorted(jobs, key=lambda job: job.lane != Lane.QUICK)


@dataclass(frozen=True)
class QueueStatus:
    """Current status of the queue, shared by header, tables and pages.

    Attributes:
        answers: queued for the playground, which takes them at once.
        at: when it was read, by the clock of the database.
        silent_since: when a cluster answered the supervisor for the last time, if it does not now.
    """

    live: list[Job]
    queued: list[Job]
    finished: int
    needs_attention: int
    supervisor_alive: bool
    answers: int = 0
    at: int = 0
    silent_since: int | None = None

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {job.id: place for place, job in enumerate(self.queued, 1)}

    @property
    def stalled(self) -> bool:
        """Whether runs wait for a supervisor that should have come by now: one starts in seconds
        after a run is added."""
        oldest = min((job.queued_at for job in self.queued), default=math.inf)
        return not self.supervisor_alive and self.at - oldest > STARTS_WITHIN_MS

    def position(self, job_id: int) -> int | None:
        """1 for the next job to start; None if the job is not queued."""
        return self._positions.get(job_id)


def status() -> QueueStatus:
    """Read the current status of the queue."""
    waiting = queued()
    attention = case((Job.state.in_([State.FAILED, State.LOST]), 1), else_=0)
    with reading() as session:
        live = list(session.scalars(select(Job).where(Job.state.in_([*LIVE])).order_by(Job.id)))
        finished, attention_count = session.execute(
            select(func.count(), func.coalesce(func.sum(attention), 0)).where(
                SHOWN, Job.state.not_in([*ACTIVE])
            )
        ).one()
        beats = dict(session.execute(select(Supervisor.host, Supervisor.beat_at)).all())
        now = database_ms(session)
    answered = beats.pop(CLUSTER, now)
    alive = abs(now - max(beats.values(), default=0)) < ALIVE_MS
    silent = answered if alive and now - answered > SILENT_MS else None
    answers = len(waits_for(Lane.PLAYGROUND))
    return QueueStatus(live, waiting, finished, attention_count, alive, answers, now, silent)


def waits_for(lane: Lane, limit: int | None = None) -> list[int]:
    """Ids of the queued jobs that a place of this lane takes and that wait for no other run."""
    with reading() as session:
        return list(session.scalars(_open_jobs(lane, limit)))


@lru_cache  # the supervisor asks at every turn
def _open_jobs(lane: Lane, limit: int | None) -> Select[int]:
    open_jobs = (Job.state == State.QUEUED, Job.lane.in_(TAKES[lane]), ~waiting())
    return select(Job.id).where(*open_jobs).limit(limit)


def cursor(run: str | int | None = None) -> tuple[Any, ...]:
    """A value that changes with the displayed data, so that pages redraw only then."""
    progress = select(func.count(), func.max(Event.id)).select_from(Event)
    if run is not None:
        progress = progress.where(Event.job_id == job_id(run))
        moved = select(Job.done, Job.state).where(Job.id == job_id(run))
    else:
        active = select(Job).where(Job.state.in_([*ACTIVE])).order_by(Job.id).subquery()
        states = func.aggregate_strings(active.c.state, ",")
        moved = select(func.sum(active.c.done), states).select_from(active)
    with reading() as session:
        return (*session.execute(progress).one(), *(session.execute(moved).first() or ()))


def attempts(run: str | int) -> list[Attempt]:
    """All attempts of a run, oldest first."""
    query = select(Attempt).where(Attempt.job_id == job_id(run)).order_by(Attempt.n)
    with reading() as session:
        return list(session.scalars(query))


def events(run: str | int, after: int = 0) -> list[Event]:
    """Events of a run after event `after`, oldest first."""
    query = select(Event).where(Event.job_id == job_id(run), Event.id > after).order_by(Event.id)
    with reading() as session:
        return list(session.scalars(query))


class StoredResult(NamedTuple):
    """A row of `Result`. The details are shared with other rows, and not to be changed."""

    job_id: int
    stage: str
    metric: str
    value: float
    stderr: float | None
    n: int | None
    details: dict[str, Any]


def results(runs: Iterable[str | int]) -> list[StoredResult]:
    """The results of these runs. There are many, and few different names and details: each of
    those is held in memory once."""
    columns = (Result.job_id, Result.stage, Result.metric, Result.value, Result.stderr, Result.n)
    query = select(*columns, cast(Result.details, Text))
    query = query.order_by(Result.job_id, Result.metric, Result.stage)
    details = lru_cache(read_object)
    with reading() as session:
        return [
            StoredResult(job, intern(stage), intern(name), value, stderr, n, details(text))
            for some in batched((job_id(run) for run in runs), MAX_VARIABLES)
            for job, stage, name, value, stderr, n, text in session.execute(
                query.where(dialect_of(session).among(Result.job_id, some))
            )
        ]


def step_times(runs: Sequence[str | int]) -> list[StepTime]:
    """Step times of these runs."""
    query = select(StepTime).where(StepTime.job_id.in_([job_id(run) for run in runs]))
    with reading() as session:
        return list(session.scalars(query.order_by(StepTime.job_id, StepTime.step)))


def decoder_rows(run: str | int) -> list[DecoderRow]:
    """The decoder reports of a speed run."""
    query = select(DecoderRow).where(DecoderRow.job_id == job_id(run))
    with reading() as session:
        return list(session.scalars(query.order_by(DecoderRow.decoder)))


def changed_since(event: int, job_id: int) -> tuple[int, set[int]]:
    """The newest event, and the jobs whose row or results may have changed since `event`: those
    with later events, those that are live, and those after `job_id`."""
    changed = select(Event.job_id).where(Event.id > event)
    others = select(Job.id).where(Job.state.in_([*LIVE]) | (Job.id > job_id))
    with reading() as session:
        newest = session.scalar(select(func.max(Event.id))) or 0
        return newest, {*session.scalars(changed.union(others))}


def jobs_by_id(ids: Iterable[int]) -> list[Job]:
    """These jobs, in no particular order; unknown ids are omitted."""
    with reading() as session:
        return [
            job
            for some in batched(ids, MAX_VARIABLES)
            for job in session.scalars(select(Job).where(dialect_of(session).among(Job.id, some)))
        ]


def figures_mark() -> tuple[int, int]:
    """A value that changes with new results or events, but not with progress."""
    with reading() as session:
        newest = session.scalar(select(func.max(Event.id))) or 0
        return newest, session.scalar(select(func.count()).select_from(Result)) or 0


def model_bytes(ids: Iterable[int]) -> dict[int, int]:
    """Job id -> bytes on disk of the saved model; runs without one are omitted."""
    query = select(Artifact.job_id, func.sum(Artifact.bytes)).where(Artifact.kind == "model")
    with reading() as session:
        return {
            row[0]: int(row[1])
            for some in batched(ids, MAX_VARIABLES)
            for row in session.execute(
                query.where(Artifact.job_id.in_(some)).group_by(Artifact.job_id)
            )
        }


def run_names() -> list[Row[Any]]:
    """The searchable fields of runs, newest first: id, kind, name, state, tags, model."""
    model: ColumnElement[Any] = Job.config["model"].as_string()
    with reading() as session:
        model = dialect_of(session).readable(Job.config, model)  # one must not hide the others
        columns = (Job.id, Job.kind, Job.name, Job.state, Job.tags, model.label("model"))
        return list(session.execute(select(*columns).where(SHOWN).order_by(Job.id.desc())))


def runs_from(run: str, most: int) -> list[Job]:
    """The newest runs that work on the model or the drafter `run` saved."""
    named = cast(Job.config, Text).contains(run, autoescape=True)
    query = select(Job).where(SHOWN, named).order_by(Job.id.desc())
    with reading() as session:
        found = (job for job in session.scalars(query) if _works_on(job, run))
        return [*islice(found, most)]


def _works_on(job: Job, run: str) -> bool:
    model, drafters = job.config.get("model"), str(job.config.get("drafters") or "")
    return model == run or run in drafters.replace(",", " ").split()


def all_run_names() -> set[str]:
    """The name of every run."""
    with reading() as session:
        return {
            run_name(kind, number) for kind, number in session.execute(select(Job.kind, Job.id))
        }


def unmeasured(limit: int) -> list[Job]:
    """Runs that have ended and whose disk space is not known, newest first."""
    query = select(Job).where(Job.state.not_in([*ACTIVE]), Job.disk_bytes.is_(None))
    with reading() as session:
        return list(session.scalars(query.order_by(Job.id.desc()).limit(limit)))


def ended_before(states: Iterable[State], moment: int) -> list[Job]:
    """Runs in one of these states that ended before a moment, oldest first."""
    query = select(Job).where(Job.state.in_([*states]), Job.finished_at < moment)
    with reading() as session:
        return list(session.scalars(query.order_by(Job.id)))


def removed(before: int) -> list[Job]:
    """Runs deleted before a moment (UTC milliseconds since 1970) and not yet purged."""
    query = select(Job).where(Job.removed_at < before, Job.purged.is_(False))
    with reading() as session:
        return list(session.scalars(query.order_by(Job.removed_at, Job.id)))


def largest(limit: int) -> list[Job]:
    """The runs that take most disk space, of those that have ended."""
    query = select(Job).where(SHOWN, Job.disk_bytes > 0).order_by(Job.disk_bytes.desc(), Job.id)
    with reading() as session:
        return list(session.scalars(query.limit(limit)))


def newest_event_at() -> int:
    """When the newest event was written, UTC milliseconds since 1970; 0 without events."""
    with reading() as session:
        return session.scalar(select(Event.at).order_by(Event.id.desc()).limit(1)) or 0


def views() -> list[SavedView]:
    """Saved views, sorted by name."""
    with reading() as session:
        return list(session.scalars(select(SavedView).order_by(SavedView.name)))


def artifacts(run: str | int) -> list[Artifact]:
    """Files and folders a run produced."""
    query = select(Artifact).where(Artifact.job_id == job_id(run)).order_by(Artifact.id)
    with reading() as session:
        return list(session.scalars(query))


def curve_rows(run: str | int) -> list[dict[str, Any]]:
    """All curve points of a run: name, step, value, at."""
    columns = (MetricPoint.name, MetricPoint.step, MetricPoint.value, MetricPoint.at)
    query = select(*columns).where(MetricPoint.job_id == job_id(run))
    with reading() as session:
        rows = session.execute(query.order_by(MetricPoint.name, MetricPoint.step))
        return [dict(row._mapping) for row in rows]


def tensor_rows(run: str | int) -> list[dict[str, Any]]:
    """One row per tensor, stage and step: tensor, block, module, stage, step, n, zeros, below,
    above, zero_share, and every named statistic of the run (None if missing)."""
    columns = ("tensor", "block", "module", "stage", "step", "n", "zeros", "below", "above")
    query = (
        select(*[getattr(TensorRow, column) for column in columns], TensorRow.stats)
        .where(TensorRow.job_id == job_id(run))
        .order_by(TensorRow.block, TensorRow.module, TensorRow.stage, TensorRow.step)
    )
    with reading() as session:
        rows = [dict(row._mapping) for row in session.execute(query)]
    rows = [row for row in rows if row["n"] and not isinstance(row["stats"], DamagedJson)]
    names = dict.fromkeys(name for row in rows for name in row["stats"])
    for row in rows:
        stats = row.pop("stats")
        row["zero_share"] = row["zeros"] / row["n"]
        row |= {name: stats.get(name) for name in names if name not in row}
    return rows


def profile_rows(run: str | int) -> list[dict[str, Any]]:
    """The stored profiles of a run: tensor, block, module, stage, name, step."""
    columns = ("tensor", "block", "module", "stage", "name", "step")
    query = (
        select(*[getattr(ProfileRow, column) for column in columns])
        .where(ProfileRow.job_id == job_id(run))
        .order_by(
            ProfileRow.block, ProfileRow.module, ProfileRow.name, ProfileRow.step, ProfileRow.stage
        )
    )
    with reading() as session:
        return [dict(row._mapping) for row in session.execute(query)]


def runs_with_weights() -> list[Job]:
    """Runs with stored weight statistics, newest first."""
    has_rows = exists(select(TensorRow.job_id).where(TensorRow.job_id == Job.id))
    with reading() as session:
        return list(session.scalars(select(Job).where(SHOWN, has_rows).order_by(Job.id.desc())))


def weights_mark(run: str | int) -> tuple[str, int, int] | None:
    """A value that changes with new statistics or results, but not with progress; None if there is
    no such run."""
    try:
        row = job(run)
    except NotFoundError:
        return None
    tensors = select(func.count()).select_from(TensorRow).where(TensorRow.job_id == row.id)
    results_count = select(func.count()).select_from(Result).where(Result.job_id == row.id)
    with reading() as session:
        return row.run, session.scalar(tensors) or 0, session.scalar(results_count) or 0


def runs_with_profile(name: str) -> list[Job]:
    """Runs with a stored profile of that name, newest first."""
    has_rows = exists(
        select(ProfileRow.job_id).where(ProfileRow.job_id == Job.id, ProfileRow.name == name)
    )
    with reading() as session:
        return list(session.scalars(select(Job).where(SHOWN, has_rows).order_by(Job.id.desc())))


def profiles_mark(run: str | int) -> tuple[str, int] | None:
    """A value that changes with new profiles; None if there is no such run."""
    try:
        row = job(run)
    except NotFoundError:
        return None
    stored = select(func.count()).select_from(ProfileRow).where(ProfileRow.job_id == row.id)
    with reading() as session:
        return row.run, session.scalar(stored) or 0
