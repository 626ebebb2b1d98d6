"""Scheduling: the order in which queued jobs start, those that wait for what another one will save,
and the status of the queue."""

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
ALIVE_MS = 15_000
SILENT_MS = 60_000  # after which a cluster that does not answer is told


@lru_cache(maxsize=1)  # the supervisor asks at every turn
def waiting() -> ColumnElement[bool]:
    """Whether a run that a job works on has not succeeded yet."""
    needed = Job.__table__.alias("needed")
    return exists(
        select(Need.needed_id)
        .join(needed, needed.c.id == Need.needed_id)
        .where(Need.job_id == Job.id, needed.c.state != State.SUCCEEDED)
        .correlate(Job)
    )


def awaited(runs: Iterable[int]) -> dict[int, list[Job]]:
    """Run id -> the runs it waits for."""
    found: dict[int, list[Job]] = {}
    query = select(Need.job_id, Job).join(Job, Job.id == Need.needed_id)
    query = query.where(Need.job_id.in_([*runs]), Job.state != State.SUCCEEDED).order_by(Job.id)
    with reading() as session:
        for run, job in session.execute(query):
            found.setdefault(run, []).append(job)
    return found


def connected(run: int) -> list[Job]:
    """The runs of the pipeline that `run` belongs to, oldest first: all that are linked by what one
    saves and another works on. Others that were deleted are left out."""
    with reading() as session:
        links: dict[int, set[int]] = {}
        for one, other in session.execute(select(Need.job_id, Need.needed_id)):
            links.setdefault(one, set()).add(other)
            links.setdefault(other, set()).add(one)
        reached, ends = set[int](), {run}
        while ends:
            reached |= ends
            ends = set[int]().union(*(links.get(end, set()) for end in ends)) - reached
        kept = Job.removed_at.is_(None) | (Job.id == run)
        shown = select(Job).where(kept, Job.id.in_(reached))
        return list(session.scalars(shown.order_by(Job.id)))


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
        .where(Job.state == State.QUEUED, Job.lane.in_(LANES_OF_SLOT[lane]))
        .order_by((Job.priority + waited).desc(), running, Job.queued_at, Job.id)
    )


def queued() -> list[Job]:
    """The queue for a slot in launch order, jobs of seconds first: they do not wait for others."""
    with reading() as session:
        jobs = session.scalars(launch_order(database_ms(session)))
        return sorted(jobs, key=lambda job: job.lane != Lane.QUICK)


@dataclass(frozen=True)
class QueueStatus:
    """Current status of the queue, shared by header, tables and pages."""

    live: list[Job]
    queued: list[Job]
    states: dict[str, int]  # runs in each state, without those that are deleted or archived
    supervisor_alive: bool
    at: int = 0  # when it was read, by the clock of the database
    silent_since: int | None = None  # when a cluster last answered, if it does not now

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {job.id: place for place, job in enumerate(self.queued, 1)}

    @property
    def finished(self) -> int:
        return sum(number for state, number in self.states.items() if state not in ACTIVE)

    @property
    def needs_attention(self) -> int:
        return self.states.get(State.FAILED, 0) + self.states.get(State.LOST, 0)

    @property
    def stalled(self) -> bool:
        """Whether runs wait for a supervisor that should have come by now: one starts in seconds
        after a run is added."""
        oldest = min((job.queued_at for job in self.queued), default=math.inf)
        return not self.supervisor_alive and self.at - oldest > 30_000

    def position(self, job_id: int) -> int | None:
        """1 for the next job to start; None if the job is not queued."""
        return self._positions.get(job_id)


def status() -> QueueStatus:
    waiting = queued()
    with reading() as session:
        live = list(session.scalars(select(Job).where(Job.state.in_([*LIVE])).order_by(Job.id)))
        every = session.execute(select(Job.state, func.count()).group_by(Job.state)).tuples()
        deleted = Counter(session.scalars(select(Job.state).where(Job.removed_at > 0)))
        states = {state: number - deleted[state] for state, number in every}  # all by an index
        beats = dict(session.execute(select(Supervisor.host, Supervisor.beat_at)).all())
        now = database_ms(session)
    answered = beats.pop(CLUSTER, now)
    alive = abs(now - max(beats.values(), default=0)) < ALIVE_MS
    silent = answered if alive and now - answered > SILENT_MS else None
    return QueueStatus(live, waiting, states, alive, now, silent)


def next_start() -> tuple[list[float], Job | None]:
    """Seconds that are left of each run at work, infinite where that is not known, and the run that
    waits for a slot, or for one of them, and comes first."""
    with reading() as session:
        left = session.scalars(select(Job.eta_s).where(Job.state.in_([*LIVE]))).all()
        first = session.scalar(launch_order(database_ms(session)).limit(1))
    return [math.inf if seconds is None else seconds for seconds in left], first


def waits_for(lane: Lane, limit: int | None = None) -> list[int]:
    """Ids of the queued jobs that a place of this lane takes and that wait for no other run."""
    open_jobs = (Job.state == State.QUEUED, Job.lane.in_(LANES_OF_SLOT[lane]), ~waiting())
    return fetched(select(Job.id).where(*open_jobs).limit(limit))
