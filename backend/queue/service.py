"""User operations on the queue, which also enforce the permissions."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from backend.errors import ConfigError, ConflictError
from backend.inputs import inputs_of
from backend.printable import one_line
from backend.queue import permissions, scheduling
from backend.queue.actor import Actor
from backend.queue.labels import RUN_NAME_LETTERS
from backend.queue.launcher import SUPERVISOR, VARIABLES, submission_variables
from backend.queue.lifecycle import first_run_id, move, note
from backend.queue.permissions import Cost, require_host
from backend.queue.scheduling import awaited
from backend.settings import settings
from backend.store import queries
from backend.store.dialects.base import NamedLock
from backend.store.session import database_ms, hold_lock, locked, writing
from backend.store.states import ACTIVE, LIVE, RESUMABLE, Lane, State
from backend.store.tables import Job, Need, config_hash

wake_supervisor = SUPERVISOR.wake
RETRIES = 2
QUICK_MAX_S, QUICK_MAX_BYTES = 60.0, 1e9  # largest estimates of a job in the quick lane
# keys of the estimate (duration, peak memory) in the environment of a job
ESTIMATED_SECONDS, ESTIMATED_BYTES = "estimated_seconds", "estimated_bytes"
# keys of the sizes of source and saved files in bytes, and of the number of model parameters
SIZES = SOURCE_BYTES, PREDICTED_BYTES, PARAMETERS = "source_bytes", "predicted_bytes", "parameters"
INPUTS = "SLIMSCOPE_INPUTS"
MAX_PRIORITY = 1000
RESET_ON_RESUME = ("desired_at", "started_at", "finished_at", "error", "eta_s", "disk_bytes")


@contextmanager
def _queue_change() -> Iterator[Session]:
    """A durable transaction on the queue, followed by waking the supervisor."""
    with writing(durable=True) as session:
        yield session
    wake_supervisor()


@dataclass(frozen=True)
class NewRun:
    """A run to be queued.

    Attributes:
        config: validated config.
        needs: ids of the runs that must succeed before it starts.
        plan: plan of its work on each layer, if its kind has plans.
        sizes: values of `SIZES`.
        cost: estimated cost; the cost of all runs if None.
    """

    config: dict[str, Any]
    needs: Iterable[int] = ()
    plan: dict[str, Any] | None = None
    sizes: tuple[int, int, int] | None = None
    cost: Cost | None = None


def enqueue(kind: str, run: NewRun | dict[str, Any], actor: Actor, **options: Any) -> Job:
    """Enqueue one run, or one config without further properties; see `enqueue_all`."""
    runs = [run if isinstance(run, NewRun) else NewRun(run)]
    return enqueue_all(kind, runs, actor, **options)[0]


def enqueue_all(
    kind: str,
    runs: Sequence[NewRun],
    actor: Actor,
    *,
    name: str = "",
    priority: int = 0,
    parent: Job | None = None,
    cost: Cost | None = None,
    known: Mapping[str, Any] | None = None,
) -> list[Job]:
    """Enqueue jobs, all or none. Several jobs form a sweep, identified by the id of its first job.

    Args:
        name: name of the runs.
        priority: priority of the runs; a guest's priority is fixed.
        parent: run that they repeat; its frozen settings are reused.
        cost: total estimated cost; required for guests.
        known: values to add to the environment of each run.

    Raises:
        ForbiddenError: the actor may not add these runs.
        ConfigError: the priority is out of bounds.
    """
    permissions.require_adding(actor)
    permissions.require_small(actor, cost, len(runs))
    is_quick = (
        len(runs) == 1
        and cost is not None
        and not cost.open_ended
        and cost.seconds < QUICK_MAX_S
        and cost.bytes < QUICK_MAX_BYTES
    )
    lane = Lane.QUICK if is_quick else Lane.SLOTS
    if actor.role != "host":  # runs of guests come after all others
        priority, lane = permissions.GUEST_PRIORITY, Lane.SLOTS
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise ConfigError(
            "The priority was not accepted.",
            f"It must be {-MAX_PRIORITY} to {MAX_PRIORITY}.",
            "",
            "priority",
        )
    jobs = [
        Job(
            kind=kind,
            name=one_line(name)[:RUN_NAME_LETTERS],
            owner=actor.signature,
            config=run.config,
            config_hash=config_hash(kind, run.config),
            plan=run.plan,
            environment={**_environment(run, parent, run.cost or cost), **(known or {})},
            retries_left=RETRIES,
            parent=parent.id if parent else None,
            priority=priority,
            lane=lane,
        )
        for run in runs
    ]
    with _queue_change() as session:
        permissions.require_free(session, actor)
        if (number := first_run_id(session)) is not None:
            jobs[0].id = number
        for job, run in zip(jobs, runs, strict=True):
            job.created_at = job.queued_at = database_ms(session)
            session.add(job)
            session.flush()  # one by one, so that ids follow the order of the configs
            job.sweep = jobs[0].id if len(jobs) > 1 else None
            needed_ids = dict.fromkeys(run.needs)
            session.add_all(Need(job_id=job.id, needed_id=needed_id) for needed_id in needed_ids)
            repeats = f"repeats {parent.run}" if parent else ""
            note(session, job.id, "queued", actor.signature, repeats)
    return jobs


def expect_run(actor: Actor) -> None:
    """Notify the supervisor that the actor is about to add a run, for which it prepares a process.

    Raises:
        ForbiddenError: the actor may not add runs.
    """
    permissions.require_adding(actor)
    if settings().engine == "local":
        SUPERVISOR.call()
        wake_supervisor()


def _environment(run: NewRun, parent: Job | None, cost: Cost | None) -> dict[str, Any]:
    """The environment of a new job: frozen settings, variables, sizes of its files, and the
    estimate, which is stored for comparison with its real cost."""
    frozen = parent.environment.get("settings") if parent else None
    if not frozen:
        frozen = settings().for_jobs()
        # machines of a cluster check that they have the same models and texts
        if settings().engine != "local" and (inputs := inputs_of(run.config)):
            frozen = {**frozen, INPUTS: json.dumps(inputs)}
    environment = {"settings": frozen, VARIABLES: submission_variables()}
    environment |= zip(SIZES, run.sizes or (), strict=False)
    if cost is not None:
        environment |= {ESTIMATED_SECONDS: round(cost.seconds, 1), ESTIMATED_BYTES: int(cost.bytes)}
    return environment


def cancel(runs: Iterable[str | int], actor: Actor) -> list[State]:
    """Cancel jobs in one transaction; return their states after it.

    A queued job is cancelled immediately. A live job is asked to stop; a second request kills it. A
    job that has ended does not change.

    Raises:
        ForbiddenError: the actor may not cancel one of the jobs.
        ConflictError: all jobs have ended.
    """
    jobs = [queries.job(run) for run in runs]
    permissions.require_cancelling(actor, [job.owner for job in jobs])
    if not any(job.state in ACTIVE for job in jobs):
        what, why = "Nothing was cancelled.", "None of the runs is queued or running."
        if len(jobs) == 1:
            what, why = f"{jobs[0].run} was not cancelled.", f"It is {jobs[0].state} already."
        raise ConflictError(what, why, "Only a queued or running run can be cancelled.")
    with _queue_change() as session:
        return [_cancel(session, job, actor) for job in locked(session, Job, [j.id for j in jobs])]


def _cancel(session: Session, job: Job, actor: Actor) -> State:
    now = database_ms(session)
    ended = {"finished_at": now, "desired": "stop", "desired_at": now}
    if job.state == State.QUEUED and move(session, job, State.CANCELLED, **ended):
        note(session, job.id, "cancelled", actor.name, "while it waited")
    elif job.state in LIVE:
        job.desired = "stop" if job.desired == "run" else "kill"
        job.desired_at = job.desired_at or now
        note(session, job.id, f"asked to {job.desired}", actor.name)
    return State(job.state)


def run_next(run: str | int, actor: Actor, after: str | int | None = None) -> Job:
    """Move a queued job to the front of the queue, or directly behind the queued job `after`.

    Raises:
        ConflictError: one of the jobs is not queued, or the job waits for another run.
    """
    require_host(actor, "reorder the queue")
    job_id = queries.job(run).id
    if awaited_runs := awaited([job_id]).get(job_id):
        what, awaited_run = f"{queries.job(job_id).run} was not moved.", awaited_runs[0].run
        do = f"Move {awaited_run}, or resume it."
        raise ConflictError(what, f"It waits for {awaited_run}.", do)
    ahead_ids = [queries.job(after).id] if after else []
    with _queue_change() as session:
        hold_lock(session, NamedLock.ORDER)
        job, *ahead = locked(session, Job, [job_id, *ahead_ids])
        queue = list(session.scalars(scheduling.launch_order(database_ms(session))))
        for each in (job, *ahead):
            if each not in queue:
                why, do = f"It is {each.state}.", "Only queued runs can be moved."
                raise ConflictError(f"{each.run} is not queued.", why, do)
        if job in ahead:
            raise ConflictError(f"{job.run} was not moved.", "It cannot follow itself.")
        queue.remove(job)
        place = queue.index(ahead[0]) + 1 if ahead else 0
        _insert(queue, place, job)
        note(session, job.id, f"put after {ahead[0].run}" if ahead else "put first", actor.name)
    return job


def _insert(queue: list[Job], place: int, moved: Job) -> None:
    """Raise priorities as far as needed for `moved` to be launched at a place of the queue."""
    queue.insert(place, moved)
    for index in range(min(place, len(queue) - 2), -1, -1):
        job, following = queue[index], queue[index + 1]
        # priority that `following` has gained by waiting longer
        waiting_bonus = (job.queued_at - following.queued_at) / scheduling.HOUR_MS
        if job.priority <= following.priority + waiting_bonus:
            job.priority = math.floor(following.priority + waiting_bonus) + 1
        elif job is not moved:
            return  # the jobs ahead are in order already


def resume(runs: Iterable[str | int], actor: Actor) -> list[Job]:
    """Queue the failed, cancelled and lost jobs among these again, in one transaction; return
    them. Their next attempts continue from the last complete checkpoint.

    Raises:
        ConflictError: the only job is queued, live, or has succeeded.
    """
    require_host(actor, "resume a run")
    ids = [queries.job(run).id for run in runs]
    resumed = []
    with _queue_change() as session:
        reset: dict[str, object] = {"desired": "run", "queued_at": database_ms(session)}
        reset |= {"not_before": 0, "retries_left": RETRIES} | dict.fromkeys(RESET_ON_RESUME)
        for job in locked(session, Job, ids):
            is_resumable = job.state in RESUMABLE and not job.removed_at
            if is_resumable and move(session, job, State.QUEUED, **reset):
                note(session, job.id, "resumed", actor.name)
                resumed.append(job)
    if len(ids) == 1 and not resumed:
        raise ConflictError(
            f"{job.run} was not resumed.",
            f"It is {job.state}.",
            "Only a failed, cancelled or lost run can be resumed.",
        )
    return resumed
