"""One query for each question the screen, the CLI and the supervisor ask. Nothing here writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, case, exists, func, select

from backend.errors import NotFoundError
from backend.store.session import now_ms, reading
from backend.store.states import ACTIVE, LIVE, State
from backend.store.tables import (
    Artifact,
    Attempt,
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
)

HOUR_MS = 3_600_000
ALIVE_MS = 15_000


def job_id(run: str | int) -> int:
    """42 of 42, "42" or "sds-0042".

    Raises:
        NotFoundError: the text names no run.
    """
    match = re.fullmatch(r"(?:[a-z][a-z0-9]*-)?0*(\d{1,15})", str(run).strip())
    if not match:
        raise NotFoundError(f"{str(run)[:40]!r} names no run.", "", "Runs look like sds-0042.")
    return int(match[1])


def job(run: str | int) -> Job:
    """The job row of a run.

    Raises:
        NotFoundError: there is no such run.
    """
    with reading() as session:
        row = session.get(Job, job_id(run))
    if row is None:
        raise NotFoundError(f"There is no run {run}.", "", "`slimscope list` shows what there is.")
    return row


def jobs(
    states: Iterable[State] | None = None, kind: str | None = None, limit: int = 500
) -> list[Job]:
    """Runs, the newest first."""
    query = select(Job).order_by(Job.id.desc()).limit(limit)
    if states is not None:
        query = query.where(Job.state.in_([*states]))
    if kind is not None:
        query = query.where(Job.kind == kind)
    with reading() as session:
        return list(session.scalars(query))


def sweep(run: str | int) -> list[Job]:
    """All runs of the sweep that `run` belongs to, the first first; none for a single run."""
    first = select(Job.sweep).where(Job.id == job_id(run)).scalar_subquery()
    with reading() as session:
        return list(session.scalars(select(Job).where(Job.sweep == first).order_by(Job.id)))


def same(kind: str, configs: Iterable[dict[str, Any]]) -> list[Job]:
    """The newest run of each of these configs that is queued, runs or has succeeded."""
    hashes = [config_hash(kind, config) for config in configs]
    newest = (
        select(func.max(Job.id))
        .where(Job.config_hash.in_(hashes), Job.state.in_([*ACTIVE, State.SUCCEEDED]))
        .group_by(Job.config_hash)
    )
    with reading() as session:
        return list(session.scalars(select(Job).where(Job.id.in_(newest)).order_by(Job.id)))


def replays(run: str | int) -> list[Job]:
    """The runs that repeat this one, the first first."""
    query = select(Job).where(Job.parent == job_id(run)).order_by(Job.id)
    with reading() as session:
        return list(session.scalars(query))


def launch_order(now: int) -> Select[Job]:
    """Queued jobs, the next to start first: priority (+1 for each hour waited), then owners with
    fewer running jobs, then first come."""
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
        .where(Job.state == State.QUEUED)
        .order_by((Job.priority + waited).desc(), running, Job.queued_at, Job.id)
    )


def queued() -> list[Job]:
    """The queue; a job's position is its place in this list."""
    with reading() as session:
        return list(session.scalars(launch_order(now_ms())))


@dataclass(frozen=True)
class QueueStatus:
    """What goes on right now; header, tables and pages all read this one."""

    live: list[Job]
    queued: list[Job]
    finished: int
    needs_attention: int
    supervisor_alive: bool

    def position(self, job_id: int) -> int | None:
        """1 for the next to start; None when the job does not wait."""
        ids = [j.id for j in self.queued]
        return ids.index(job_id) + 1 if job_id in ids else None


def status() -> QueueStatus:
    """The one status function."""
    waiting = queued()
    attention = case((Job.state.in_([State.FAILED, State.LOST]), 1), else_=0)
    with reading() as session:
        live = list(session.scalars(select(Job).where(Job.state.in_([*LIVE])).order_by(Job.id)))
        finished, attention_count = session.execute(
            select(func.count(), func.coalesce(func.sum(attention), 0)).where(
                Job.state.not_in([*ACTIVE])
            )
        ).one()
        beat = session.scalar(select(func.max(Supervisor.beat_at))) or 0
    return QueueStatus(live, waiting, finished, attention_count, abs(now_ms() - beat) < ALIVE_MS)


def cursor(run: str | int | None = None) -> tuple[Any, ...]:
    """Changes whenever something a page shows has changed: compare, and redraw only then."""
    progress = select(func.count(), func.max(Event.id)).select_from(Event)
    moved = select(func.sum(Job.done), func.group_concat(Job.state))
    if run is not None:
        progress = progress.where(Event.job_id == job_id(run))
        moved = select(Job.done, Job.state).where(Job.id == job_id(run))
    else:
        moved = moved.where(Job.state.in_([*ACTIVE]))
    with reading() as session:
        return (*session.execute(progress).one(), *(session.execute(moved).first() or ()))


def attempts(run: str | int) -> list[Attempt]:
    """Every process that worked on a run, the first first."""
    query = select(Attempt).where(Attempt.job_id == job_id(run)).order_by(Attempt.n)
    with reading() as session:
        return list(session.scalars(query))


def events(run: str | int, after: int = 0) -> list[Event]:
    """What happened to a run, oldest first, from behind event `after`."""
    query = select(Event).where(Event.job_id == job_id(run), Event.id > after).order_by(Event.id)
    with reading() as session:
        return list(session.scalars(query))


def results(runs: Sequence[str | int]) -> list[Result]:
    """The figures these runs ended with."""
    query = select(Result).where(Result.job_id.in_([job_id(r) for r in runs]))
    with reading() as session:
        return list(session.scalars(query.order_by(Result.job_id, Result.metric, Result.stage)))


def step_times(runs: Sequence[str | int]) -> list[StepTime]:
    """Seconds of the steps of these runs."""
    query = select(StepTime).where(StepTime.job_id.in_([job_id(run) for run in runs]))
    with reading() as session:
        return list(session.scalars(query.order_by(StepTime.job_id, StepTime.step)))


def decoder_rows(run: str | int) -> list[DecoderRow]:
    """What a speed run measured of each decoder."""
    query = select(DecoderRow).where(DecoderRow.job_id == job_id(run))
    with reading() as session:
        return list(session.scalars(query.order_by(DecoderRow.decoder)))


def all_figures() -> list[Row[Any]]:
    """The figures of every run, as plain rows with the names of `Result`."""
    columns = (Result.job_id, Result.stage, Result.metric, Result.value, Result.stderr, Result.n)
    query = select(*columns, Result.details)
    with reading() as session:
        return list(session.execute(query.order_by(Result.job_id, Result.metric, Result.stage)))


def figures_mark() -> tuple[int, int]:
    """Changes when a run has recorded a figure or changed its state; progress leaves it alone."""
    with reading() as session:
        newest = session.scalar(select(func.max(Event.id))) or 0
        return newest, session.scalar(select(func.count()).select_from(Result)) or 0


def model_bytes() -> dict[int, int]:
    """Job id -> bytes on disk of the model the run saved; runs without one are left out."""
    query = select(Artifact.job_id, func.sum(Artifact.bytes)).where(Artifact.kind == "model")
    with reading() as session:
        return {row[0]: int(row[1]) for row in session.execute(query.group_by(Artifact.job_id))}


def run_names() -> list[Row[Any]]:
    """What runs are found by, the newest first: id, kind, name, state, tags, model."""
    model = Job.config["model"].as_string().label("model")
    query = select(Job.id, Job.kind, Job.name, Job.state, Job.tags, model).order_by(Job.id.desc())
    with reading() as session:
        return list(session.execute(query))


def views() -> list[SavedView]:
    """The named ways to look at the runs, by name."""
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
    above, zero_share, and every named statistic of the run (None where a row has none)."""
    columns = ("tensor", "block", "module", "stage", "step", "n", "zeros", "below", "above")
    query = (
        select(*[getattr(TensorRow, column) for column in columns], TensorRow.stats)
        .where(TensorRow.job_id == job_id(run))
        .order_by(TensorRow.block, TensorRow.module, TensorRow.stage, TensorRow.step)
    )
    with reading() as session:
        rows = [dict(row._mapping) for row in session.execute(query)]
    names = dict.fromkeys(name for row in rows for name in row["stats"])
    for row in rows:
        stats = row.pop("stats")
        row["zero_share"] = row["zeros"] / row["n"]
        row |= {name: stats.get(name) for name in names if name not in row}
    return rows


def profile_rows(run: str | int) -> list[dict[str, Any]]:
    """Which profiles a run has stored: tensor, block, module, stage, name, step."""
    columns = ("tensor", "block", "module", "stage", "name", "step")
    query = (
        select(*[getattr(ProfileRow, column) for column in columns])
        .where(ProfileRow.job_id == job_id(run))
        .order_by(ProfileRow.block, ProfileRow.module, ProfileRow.name, ProfileRow.step)
    )
    with reading() as session:
        return [dict(row._mapping) for row in session.execute(query)]


def runs_with_weights() -> list[Job]:
    """Runs that have stored weight statistics, the newest first."""
    held = exists(select(TensorRow.job_id).where(TensorRow.job_id == Job.id))
    with reading() as session:
        return list(session.scalars(select(Job).where(held).order_by(Job.id.desc())))


def weights_mark(run: str | int) -> tuple[str, int, int] | None:
    """Changes when the run has stored more statistics or figures; None where there is no run.
    Progress alone does not change it."""
    try:
        found = job(run)
    except NotFoundError:
        return None
    tensors = select(func.count()).select_from(TensorRow).where(TensorRow.job_id == found.id)
    figures = select(func.count()).select_from(Result).where(Result.job_id == found.id)
    with reading() as session:
        return found.run, session.scalar(tensors) or 0, session.scalar(figures) or 0


def runs_with_profile(name: str) -> list[Job]:
    """Runs that have stored a profile of that name, the newest first."""
    held = exists(
        select(ProfileRow.job_id).where(ProfileRow.job_id == Job.id, ProfileRow.name == name)
    )
    with reading() as session:
        return list(session.scalars(select(Job).where(held).order_by(Job.id.desc())))


def profiles_mark(run: str | int) -> tuple[str, int] | None:
    """Changes when the run has stored more profiles; None where there is no run."""
    try:
        found = job(run)
    except NotFoundError:
        return None
    stored = select(func.count()).select_from(ProfileRow).where(ProfileRow.job_id == found.id)
    with reading() as session:
        return found.run, session.scalar(stored) or 0
