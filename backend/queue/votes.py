"""Votes for answers: one of each person for each run."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from backend.errors import ConflictError
from backend.queue.lifecycle import note
from backend.queue.roles import Actor, require_voting
from backend.store import queries
from backend.store.session import now_ms, writing
from backend.store.states import Lane, State
from backend.store.tables import Vote


def cast(run: str | int, choice: int, blind: bool, actor: Actor) -> None:
    """Store a vote.

    Args:
        choice: see `Vote.choice`; the caller knows how many sides there are.
        blind: whether the voter did not see which model wrote what.

    Raises:
        ForbiddenError, RateLimitError: the actor may not vote, or not so often.
        ConflictError: the run holds no finished answers, or this person has voted.
    """
    require_voting(actor)
    job = queries.job(run)
    if job.lane != Lane.PLAYGROUND or job.state != State.SUCCEEDED:
        why = f"{job.run} holds no finished answers."
        raise ConflictError("The vote was not saved.", why)
    try:
        with writing(durable=True) as session:
            vote = Vote(job_id=job.id, voter=actor.name, choice=choice, blind=blind, at=now_ms())
            session.add(vote)
            session.flush()
            note(session, job.id, "voted", actor.signature)
    except IntegrityError as error:
        why = f"You have voted on {job.run} before."
        raise ConflictError("The vote was not saved.", why) from error
