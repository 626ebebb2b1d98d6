"""Votes for answers: one of each person for each run."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from backend.errors import ConflictError
from backend.queue.actor import Actor
from backend.queue.lifecycle import note
from backend.queue.permissions import require_voting
from backend.store import queries
from backend.store.session import now_ms, reading, writing
from backend.store.states import Lane, State
from backend.store.tables import Job, Vote

TIE, BAD = 0, -1  # choices that are no side


@dataclass(frozen=True)
class StoredVote:
    """A vote and the config of the run it is about.

    Attributes:
        choice: the best side, from 1, `TIE` or `BAD`.
        blind: whether the voter did not see which model wrote what.
    """

    choice: int
    blind: bool
    config: dict[str, object]


def votes_of(run: str | int) -> dict[str, int]:
    """Voter -> choice, of one run."""
    query = (
        select(Vote.voter, Vote.choice)
        .where(Vote.job_id == queries.job_id(run))
        .order_by(Vote.voter)
    )
    with reading() as session:
        return dict(session.execute(query).tuples().all())


def all_votes() -> list[StoredVote]:
    """Every vote for a run that was not deleted, the oldest first."""
    query = select(Vote.choice, Vote.blind, Job.config).join(Job, Job.id == Vote.job_id)
    query = query.where(Job.removed_at.is_(None))
    with reading() as session:
        rows = session.execute(query.order_by(Vote.at, Vote.job_id, Vote.voter))
        return [StoredVote(choice, blind, config) for choice, blind, config in rows]


def cast(run: str | int, choice: int, blind: bool, actor: Actor) -> None:
    """Store a vote.

    Args:
        choice: see `Vote.choice`; the caller knows how many sides there are.

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
