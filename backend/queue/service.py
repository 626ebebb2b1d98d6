"""What people may do to the queue. Every rule about who may do what stands here, not in a page."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import update
from sqlalchemy.orm import Session

from backend.errors import ConfigRefused, Forbidden
from backend.settings import settings
from backend.store import queries
from backend.store.session import change, now_ms, writing
from backend.store.states import LIVE, RESUMABLE, State
from backend.store.tables import Event, Job

RETRIES = 2


@dataclass(frozen=True)
class Actor:
    """Who asks. A host may do everything; a guest may look."""

    name: str
    role: Literal["host", "guest"] = "guest"


def require_host(actor: Actor, deed: str) -> None:
    """Raises `Forbidden` unless the actor is a host."""
    if actor.role != "host":
        raise Forbidden(
            f"{actor.name} may not {deed}.",
            "Guests may look, not change.",
            "Ask the person who started Slimscope.",
        )


def note(session: Session, job_id: int, kind: str, actor: str, text: str = "") -> None:
    """Appends one event to a job's history."""
    session.add(Event(job_id=job_id, at=now_ms(), type=kind, actor=actor, text=text))


def config_hash(kind: str, config: dict[str, Any]) -> str:
    """The same for the same kind and config, whatever the order of the fields."""
    return hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode()).hexdigest()


def enqueue(
    kind: str,
    config: dict[str, Any],
    actor: Actor,
    *,
    name: str = "",
    priority: int = 0,
    parent: int | None = None,
) -> Job:
    """Writes one queued job with a frozen, already validated config, and does nothing else.

    Raises:
        Forbidden: the actor is a guest.
    """
    require_host(actor, "add a run")
    now = now_ms()
    with writing(durable=True) as session:
        job = Job(
            kind=kind, name=name.strip()[:120], owner=actor.name, config=config,
            config_hash=config_hash(kind, config), priority=priority, parent=parent,
            retries_left=RETRIES, created_at=now, queued_at=now,
            environment={"settings": settings().for_jobs()},
        )  # fmt: skip
        session.add(job)
        session.flush()
        note(session, job.id, "queued", actor.name)
    return job


def cancel(run: str | int, actor: Actor) -> State:
    """Asks a job to end. A waiting one is cancelled at once. A running one is asked to stop; asked
    a second time, it is killed. A job that has ended stays as it is.

    Returns:
        The state right after the request.
    """
    require_host(actor, "cancel a run")
    job_id = queries.job(run).id
    now = now_ms()
    with writing(durable=True) as session:
        waiting = (
            update(Job)
            .where(Job.id == job_id, Job.state == State.QUEUED)
            .values(state=State.CANCELLED, finished_at=now, desired="stop", desired_at=now)
        )
        if change(session, waiting):
            note(session, job_id, "cancelled", actor.name, "while it waited")
            return State.CANCELLED
        job = session.get_one(Job, job_id)
        if job.state in LIVE:
            job.desired = "stop" if job.desired == "run" else "kill"
            job.desired_at = job.desired_at or now
            note(session, job_id, f"asked to {job.desired}", actor.name)
        return State(job.state)


def resume(run: str | int, actor: Actor) -> Job:
    """Queues an ended job again; its next attempt goes on from the last whole checkpoint.

    Raises:
        ConfigRefused: the job waits, runs, or succeeded.
    """
    require_host(actor, "resume a run")
    job_id = queries.job(run).id
    with writing(durable=True) as session:
        again = (
            update(Job)
            .where(Job.id == job_id, Job.state.in_([*RESUMABLE]))
            .values(
                state=State.QUEUED, desired="run", desired_at=None, queued_at=now_ms(),
                started_at=None, finished_at=None, not_before=0, retries_left=RETRIES,
                error=None, error_kind=None, eta_s=None,
            )
        )  # fmt: skip
        resumed = change(session, again)
        job = session.get_one(Job, job_id)
        if not resumed:
            raise ConfigRefused(
                f"{job.run} was not resumed.",
                f"It is {job.state}.",
                "Only a failed, cancelled or lost run can be resumed.",
            )
        note(session, job_id, "resumed", actor.name)
    return job
