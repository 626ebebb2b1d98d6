"""Runs that wait for others: each works on a model or a drafter that another one will save."""

from collections.abc import Iterable
from functools import lru_cache

from sqlalchemy import ColumnElement, exists, select

from backend.store.session import reading
from backend.store.states import State
from backend.store.tables import Job, Need


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
