"""State transitions of a job: each is a compare-and-set inside one transaction, so of concurrent
changes by supervisors, late processes and users only one succeeds."""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from backend.errors import SlimscopeError
from backend.printable import printable
from backend.queue.engines.local import LocalEngine
from backend.queue.scheduling import launch_order, waiting
from backend.store.dialects import dialect_of
from backend.store.session import change, database_ms, locked, writing
from backend.store.states import ACTIVE, ALLOWED, QUICK_SLOT, Exit, Lane, State
from backend.store.tables import Attempt, Event, Job, Slot

ME = "supervisor"
RETRY_DELAYS_MS = {1: 2_000, 0: 30_000}  # by the number of retries left afterward
AGAIN_DELAY_MS = 60_000  # after the disk was full, or the database away
KILLED_HINT = (
    "A process that is killed repeatedly has most likely run out of memory: lower the segments or "
    "the context length in a new run."
)
OTHER_VERSION = {
    "what": "The run was not started.",
    "why": "Where it was to run, another version of Slimscope is installed than that of the "
    "database.",
    "do": "Install the same version on every machine, restart the dashboard, and resume.",
}
LOG_HINT = "See the log of the last attempt. Resume continues from the last checkpoint."


CONCERNS_ALL_ROWS = (DBAPIError, PoolTimeoutError, sqlite3.Error, OSError)


class DamagedRowError(Exception):
    """A row of the job `job_id` that cannot be worked with. Its cause is what went wrong."""

    def __init__(self, job_id: int) -> None:
        super().__init__(job_id)
        self.job_id = job_id


@contextmanager
def rows_of(job_id: int) -> Iterator[None]:
    """Raise `DamagedRowError` where rows of a job cannot be worked with. What concerns all jobs,
    such as a full disk or a locked database, is passed on."""
    try:
        yield
    except (*CONCERNS_ALL_ROWS, DamagedRowError):
        raise
    except Exception as error:
        raise DamagedRowError(job_id) from error


@contextmanager
def failing_alone(job_id: int | None = None) -> Iterator[None]:
    """Fail a job whose rows cannot be worked with, so that the others go on: this one, or that of a
    `DamagedRowError`."""
    try:
        with nullcontext() if job_id is None else rows_of(job_id):
            yield
    except DamagedRowError as error:
        fail_job(error.job_id, error.__cause__ or error)


def fail_job(job_id: int, cause: BaseException) -> None:
    """Fail a job that cannot be carried out because of what its rows hold; end its attempts."""
    what, why = "The run was not carried out.", f"{type(cause).__name__}: {cause}"
    do = "Its row in the database may be damaged: add the run anew, or restore a daily copy."
    if isinstance(cause, SlimscopeError):
        what, why, do = cause.what, cause.why, cause.do
    error = {"what": what, "why": printable(why)[:1000], "do": do}
    with writing(durable=True) as session:
        now = database_ms(session)
        ours = select(Attempt.id).where(Attempt.job_id == job_id)
        ending = update(Attempt).where(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
        session.execute(ending.values(ended_at=now, outcome="failed"))
        session.execute(update(Slot).where(Slot.attempt_id.in_(ours)).values(attempt_id=None))
        failing = update(Job).where(Job.id == job_id, Job.state.in_([*ACTIVE]))
        if change(session, failing.values(state=State.FAILED, finished_at=now, error=error)):
            note(session, job_id, State.FAILED, ME, error["why"])


def move(session: Session, job: Job, to: State, **values: object) -> bool:
    """Move a job to another state if the transition is allowed; return whether it was."""
    origins = [state for state, targets in ALLOWED.items() if to in targets and state == job.state]
    moving = update(Job).where(Job.id == job.id, Job.state.in_(origins)).values(state=to, **values)
    return bool(change(session, moving))


def note(session: Session, job_id: int, kind: str, actor: str, text: str = "") -> None:
    """Append an event to the history of a job."""
    session.add(Event(job_id=job_id, at=database_ms(session), type=kind, actor=actor, text=text))


def start_attempt(
    session: Session, host: str, engine: str, capacity: int, lane: Lane = Lane.SLOTS
) -> Attempt | None:
    """Claim the next queued job and a free slot for it; None if there is none of one of them.

    Args:
        host: whose slots they are; those from number `capacity` on are not used.
        lane: whose places are meant: the slots, or the one beside them.

    Raises:
        DamagedRowError: the next job cannot be started, and is to be failed.
    """
    place = Slot.number == QUICK_SLOT if lane == Lane.QUICK else Slot.number < capacity
    free = select(Slot).where(Slot.host == host, Slot.attempt_id.is_(None), place)
    free = free.order_by(Slot.number).limit(1).with_for_update(skip_locked=True)
    slot, now = session.scalars(free).first(), database_ms(session)
    # A job may start when what it works on is there, and it need not wait for a retry. None waits
    # longer than the longest delay: a later `not_before` was written before the system clock was
    # set back.
    longest = max([AGAIN_DELAY_MS, *RETRY_DELAYS_MS.values()])
    is_due = (Job.not_before <= now) | (Job.not_before > now + longest)
    due = launch_order(now, lane).where(~waiting(), is_due).limit(1)
    job = session.scalars(due.with_for_update(of=Job, skip_locked=True)).first()
    if slot is None or job is None:
        return None
    with rows_of(job.id):
        number = job.attempts_made + 1
        if not move(session, job, State.STARTING, attempts_made=number):
            return None  # it is queued no longer
        attempt = Attempt(
            job_id=job.id,
            n=number,
            token=secrets.token_hex(16),
            engine=engine,
            launched_at=now,
        )
        session.add(attempt)
        session.flush()
        session.refresh(job)
    taking = update(Slot).where(
        Slot.host == host, Slot.number == slot.number, Slot.attempt_id.is_(None)
    )
    if not change(session, taking.values(attempt_id=attempt.id)):  # another supervisor was faster
        session.rollback()
        return None
    return attempt


def mark_running(session: Session, attempt: Attempt) -> None:
    """Mark a job as running once the attempt's process has claimed it."""
    job = session.get_one(Job, attempt.job_id)
    if move(session, job, State.RUNNING, started_at=job.started_at or attempt.started_at):
        note(session, job.id, "running", ME, f"attempt {attempt.n}")


@dataclass(frozen=True)
class AttemptOutcome:
    """The transition of a job after its attempt has ended."""

    state: State
    text: str
    spend_retry: bool = False
    delay_ms: int = 0  # before the next attempt


def verdict(
    outcome: str | None, code: int | None, desired: str, retries_left: int, here: bool = False
) -> AttemptOutcome:
    """The next state of a job whose process has ended.

    Args:
        outcome: recorded by the process before it exited; None if it did not.
        code: exit code, negative for a signal, None if unknown.
        here: on the machine of the supervisor, which a new version will replace.
    """
    how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
    match outcome:
        case "succeeded":
            return AttemptOutcome(State.SUCCEEDED, "")
        case "failed":
            return AttemptOutcome(State.FAILED, "")
        case "stopped" | "never started":
            if desired != "run":
                return AttemptOutcome(State.CANCELLED, "everything finished so far is kept")
            return AttemptOutcome(State.QUEUED, f"interrupted: {outcome}")
    if desired != "run":
        return AttemptOutcome(State.CANCELLED, f"killed{how}; kept up to the last checkpoint")
    if code in (Exit.NO_SPACE, Exit.AWAY):
        why = "the disk is full" if code == Exit.NO_SPACE else "the database was away"
        text = f"{why}; tried again every minute, from the last checkpoint"
        return AttemptOutcome(State.QUEUED, text, delay_ms=AGAIN_DELAY_MS)
    if code == Exit.OTHER_VERSION and here:
        text = "another version of Slimscope has been installed; waits for the dashboard's restart"
        return AttemptOutcome(State.QUEUED, text, delay_ms=AGAIN_DELAY_MS)
    if code == Exit.OTHER_VERSION:
        return AttemptOutcome(State.FAILED, "it met another version of Slimscope")
    gone = code == Exit.FOLDER_GONE
    died = "its folder was removed" if gone else f"the process died{how}"
    if retries_left > 0:
        delay = 0 if gone else RETRY_DELAYS_MS.get(retries_left - 1, 0)
        return AttemptOutcome(State.QUEUED, f"{died}; will resume", True, delay)
    return AttemptOutcome(State.LOST, f"{died}; no automatic retry is left")


def end_attempt(session: Session, attempt: Attempt, code: int | None, fence: str = "") -> None:
    """Close an attempt whose process has ended, free its slot and update its job. `fence`: outcome
    to set if the process never claimed the attempt; no effect if it has claimed it meanwhile."""
    row = session.get_one(Attempt, attempt.id)
    closing = update(Attempt).where(Attempt.id == attempt.id, Attempt.ended_at.is_(None))
    if fence:
        closing = closing.where(Attempt.started_at.is_(None)).values(outcome=fence)
    now = database_ms(session)
    if not change(session, closing.values(ended_at=now, exit_code=code)):
        return
    session.execute(update(Slot).where(Slot.attempt_id == attempt.id).values(attempt_id=None))
    session.refresh(row)
    (job,) = locked(session, Job, [attempt.job_id])
    here = row.engine == LocalEngine.name
    judged = verdict(row.outcome, code, job.desired, job.retries_left, here)
    values: dict[str, object] = {"finished_at": now}
    if judged.state == State.QUEUED:
        left, start = job.retries_left - judged.spend_retry, now + judged.delay_ms
        values = {"retries_left": left, "not_before": start}
    elif code == Exit.OTHER_VERSION:
        values["error"] = OTHER_VERSION
    if judged.state == State.LOST:
        do = LOG_HINT if code is not None and code >= 0 else KILLED_HINT
        values["error"] = {"what": "The run was lost.", "why": judged.text, "do": do}
    if move(session, job, judged.state, eta_s=None, **values):
        note(session, job.id, judged.state, ME, judged.text)


def first_number(session: Session) -> int | None:
    """The number of the next run where it is the first; None where the database counts on. Without
    this, SQLite would count on from the examples, whose numbers are negative."""
    if not dialect_of(session).numbers_follow_largest:
        return None
    return None if session.scalar(select(Job.id).where(Job.id > 0).limit(1)) else 1
