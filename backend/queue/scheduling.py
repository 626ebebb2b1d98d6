"""Scheduling: launch order of queued jobs, dependencies between runs, and status of the queue."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, select

from backend.store.session import database_ms, fetched, reading
from backend.store.states import ACTIVE, LANES_OF_SLOT, LIVE, Lane, State
from backend.store.tables import CLUSTER, Job, Need, Supervisor

HOUR_MS = 3_600_000
SUPERVISOR_ALIVE_MS = 15_000
SILENT_MS = 60_000  # silence of a cluster that is reported


@lru_cache(maxsize=1)  # the supervisor uses it in every iteration
def waiting() -> ColumnElement[bool]:
    """Condition that a job waits for a run that has not succeeded yet."""
    needed = Job.__table__.alias("needed")
    return exists(
        select(Need.needed_id)
        .join(needed, needed.c.id == Need.needed_id)
        .where(Need.job_id == Job.id, needed.c.state != State.SUCCEEDED)
        .correlate(Job)
    )


def awaited(runs: Iterable[int]) -> dict[int, list[Job]]:
    """The runs that each of these runs waits for, by run id."""
    awaited_runs: dict[int, list[Job]] = {}
    query = select(Need.job_id, Job).join(Job, Job.id == Need.needed_id)
    query = query.where(Need.job_id.in_([*runs]), Job.state != State.SUCCEEDED).order_by(Job.id)
    with reading() as session:
        for run, job in session.execute(query):
            awaited_runs.setdefault(run, []).append(job)
    return awaited_runs


def pipeline_jobs(run: int) -> list[Job]:
    """The runs of the pipeline of a run, oldest first: all runs that depend on each other, directly
    or indirectly. Deleted runs are omitted, except for `run` itself."""
    with reading() as session:
        neighbors: dict[int, set[int]] = {}
        for job_id, needed_id in session.execute(select(Need.job_id, Need.needed_id)):
            neighbors.setdefault(job_id, set()).add(needed_id)
            neighbors.setdefault(needed_id, set()).add(job_id)
        visited, frontier = set[int](), {run}
        while frontier:
            visited |= frontier
            reached = (neighbors.get(job_id, set()) for job_id in frontier)
            frontier = set[int]().union(*reached) - visited
        visible = Job.removed_at.is_(None) | (Job.id == run)
        query = select(Job).where(visible, Job.id.in_(visited))
        return list(session.scalars(query.order_by(Job.id)))


def launch_order(now: int, lane: Lane = Lane.SLOTS) -> Select[Job]:
    """The queued jobs for a slot of this lane in launch order.

    The order is by priority (+1 per hour of waiting), then owners with fewer running jobs, then
    first come, first served.

    Args:
        now: UTC milliseconds since 1970, by the database's clock.
    """
    running_job = Job.__table__.alias("other")
    running = (
        select(func.count())
        .select_from(running_job)
        .where(running_job.c.owner == Job.owner, running_job.c.state.in_([*LIVE]))
        .correlate(Job)
        .scalar_subquery()
    )
    waiting_hours: ColumnElement[Any] = (now - Job.queued_at) / HOUR_MS
    return (
        select(Job)
        .where(Job.state == State.QUEUED, Job.lane.in_(LANES_OF_SLOT[lane]))
        .order_by((Job.priority + waiting_hours).desc(), running, Job.queued_at, Job.id)
    )


def queued() -> list[Job]:
    """The queue in launch order; jobs of the quick lane are first, as they need not wait."""
    with reading() as session:
        jobs = session.scalars(launch_order(database_ms(session)))
        return sorted(jobs, key=lambda job: job.lane != Lane.QUICK)


@dataclass(frozen=True)
class QueueStatus:
    """The status of the queue, for the header, tables and pages.

    Attributes:
        live: starting, running and cancelling jobs.
        queued: queued jobs in launch order.
        states: number of runs in each state, without deleted runs.
        supervisor_alive: a supervisor has sent a heartbeat recently.
        at: time of the status, UTC milliseconds since 1970, by the database's clock.
        silent_since: time of the cluster's last answer if it does not answer now, else None.
    """

    live: list[Job]
    queued: list[Job]
    states: dict[str, int]
    supervisor_alive: bool
    at: int = 0
    silent_since: int | None = None

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {job.id: position for position, job in enumerate(self.queued, 1)}

    @property
    def finished(self) -> int:
        """Number of runs that have ended."""
        return sum(count for state, count in self.states.items() if state not in ACTIVE)

    @property
    def needs_attention(self) -> int:
        """Number of failed and lost runs."""
        return self.states.get(State.FAILED, 0) + self.states.get(State.LOST, 0)

    @property
    def stalled(self) -> bool:
        """True if runs have waited for long without a supervisor, which starts within seconds."""
        oldest = min((job.queued_at for job in self.queued), default=math.inf)
        return not self.supervisor_alive and self.at - oldest > 30_000

    def position(self, job_id: int) -> int | None:
        """Position of a job in the queue, 1 for the next to start; None if it is not queued."""
        return self._positions.get(job_id)


def status() -> QueueStatus:
    """Read the status of the queue."""
    queued_jobs = queued()
    with reading() as session:
        live = list(session.scalars(select(Job).where(Job.state.in_([*LIVE])).order_by(Job.id)))
        # both counts use an index, unlike a single query without deleted runs
        counts = session.execute(select(Job.state, func.count()).group_by(Job.state)).tuples()
        deleted = Counter(session.scalars(select(Job.state).where(Job.removed_at > 0)))
        states = {state: count - deleted[state] for state, count in counts}
        beats = dict(session.execute(select(Supervisor.host, Supervisor.beat_at)).all())
        now = database_ms(session)
    answered_at = beats.pop(CLUSTER, now)
    is_alive = abs(now - max(beats.values(), default=0)) < SUPERVISOR_ALIVE_MS
    silent_since = answered_at if is_alive and now - answered_at > SILENT_MS else None
    return QueueStatus(live, queued_jobs, states, is_alive, now, silent_since)


def next_start() -> tuple[list[float], Job | None]:
    """Remaining seconds of each live run (infinite if unknown), and the first job in launch order,
    which may still wait for another run; None without a queued job."""
    with reading() as session:
        remaining_s = session.scalars(select(Job.eta_s).where(Job.state.in_([*LIVE]))).all()
        first = session.scalar(launch_order(database_ms(session)).limit(1))
    return [math.inf if seconds is None else seconds for seconds in remaining_s], first


def ready_job_ids(lane: Lane, limit: int | None = None) -> list[int]:
    """Ids of the queued jobs for a slot of this lane that wait for no other run."""
    ready = (Job.state == State.QUEUED, Job.lane.in_(LANES_OF_SLOT[lane]), ~waiting())
    return fetched(select(Job.id).where(*ready).limit(limit))
