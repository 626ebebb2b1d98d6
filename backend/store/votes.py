"""Reading of the votes for answers."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from backend.store.queries import job_id
from backend.store.session import reading
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
    query = select(Vote.voter, Vote.choice).where(Vote.job_id == job_id(run)).order_by(Vote.voter)
    with reading() as session:
        return dict(session.execute(query).tuples().all())


def all_votes() -> list[StoredVote]:
    """Every vote for a run that was not deleted, the oldest first."""
    query = select(Vote.choice, Vote.blind, Job.config).join(Job, Job.id == Vote.job_id)
    query = query.where(Job.removed_at.is_(None))
    with reading() as session:
        rows = session.execute(query.order_by(Vote.at, Vote.job_id, Vote.voter))
        return [StoredVote(choice, blind, config) for choice, blind, config in rows]
