"""State transitions of a job.

Each is a compare-and-set inside one transaction, so that only one of several concurrent changes by
supervisors, late processes and users succeeds."""

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

SUPERVISOR_ACTOR = "supervisor"
RETRY_DELAYS_MS = {1: 2_000, 0: 30_000}  # by number of retries that are left afterward
AGAIN_DELAY_MS = 60_000  # after a full disk, or an absent database
KILLED_HINT = (
    "A process that is killed repeatedly has most likely run out of memory: lower the segments or "
    "the context length in a new run."
)
OTHER_VERSION = {
    "what": "The run was not started.",
    "why": "The machine of the run has another version of Slimscope than the database.",
    "do": "Install the same version on every machine, restart the dashboard, and resume.",
}
LOG_HINT = "See the log of the last attempt. Resume continues from the last checkpoint."
CONCERNS_ALL_ROWS = (DBAPIError, PoolTimeoutError, sqlite3.Error, OSError)


class DamagedRowError(Exception):
    """Unusable rows of the job `job_id`; the cause is the original error."""

    def __init__(self, job_id: int) -> None:
        super().__init__(job_id)
        self.job_id = job_id


@contextmanager
def damaged_row_errors(job_id: int) -> Iterator[None]:
    """Context that turns errors into a `DamagedRowError` of a job.

    Errors that concern all jobs, such as a full disk or a locked database, are not converted."""
    try:
        yield
    except (*CONCERNS_ALL_ROWS, DamagedRowError):
        raise
    except Exception as error:
        raise DamagedRowError(job_id) from error


@contextmanager
def isolate_failures(job_id: int | None = None) -> Iterator[None]:
    """Context that fails the job of a `DamagedRowError`, so that other jobs continue.

    Args:
        job_id: job that the whole context works on; None if it raises `DamagedRowError` itself.
    """
    try:
        with nullcontext() if job_id is None else damaged_row_errors(job_id):
            yield
    except DamagedRowError as error:
        fail_job(error.job_id, error.__cause__ or error)


def fail_job(job_id: int, cause: BaseException) -> None:
    """Fail a job that cannot run because of the content of its rows; end its attempts."""
    what, why = "The run was not carried out.", f"{type(cause).__name__}: {cause}"
    do = "Its row in the database may be damaged: add the run again, or restore a daily copy."
    if isinstance(cause, SlimscopeError):
        what, why, do = cause.what, cause.why, cause.do
    error = {"what": what, "why": printable(why)[:1000], "do": do}
    with writing(durable=True) as session:
        now = database_ms(session)
        attempts = select(Attempt.id).where(Attempt.job_id == job_id)
        ending = update(Attempt).where(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
        session.execute(ending.values(ended_at=now, outcome="failed"))
        session.execute(update(Slot).where(Slot.attempt_id.in_(attempts)).values(attempt_id=None))
        failing = update(Job).where(Job.id == job_id, Job.state.in_([*ACTIVE]))
        if change(session, failing.values(state=State.FAILED, finished_at=now, error=error)):
            note(session, job_id, State.FAILED, SUPERVISOR_ACTOR, error["why"])


def move(session: Session, job: Job, to: State, **values: object) -> bool:
    """Move a job to another state; return True if the transition was allowed and made."""
    origins = [state for state, targets in ALLOWED.items() if to in targets and state == job.state]
    moving = update(Job).where(Job.id == job.id, Job.state.in_(origins)).values(state=to, **values)
    return bool(change(session, moving))


def note(session: Session, job_id: int, kind: str, actor: str, text: str = "") -> None:
    """Append an event to the history of a job."""
    session.add(Event(job_id=job_id, at=database_ms(session), type=kind, actor=actor, text=text))


def start_attempt(
    session: Session, host: str, engine: str, capacity: int, lane: Lane = Lane.SLOTS
) -> Attempt | None:
    """Claim the next queued job with a free slot; None if there is no job or no slot.

    Args:
        host: owner of the slots.
        capacity: number of usable slots.
        lane: the normal slots, or the quick slot.

    Raises:
        DamagedRowError: the rows of the next job are damaged.
    """
    in_lane = Slot.number == QUICK_SLOT if lane == Lane.QUICK else Slot.number < capacity
    free = select(Slot).where(Slot.host == host, Slot.attempt_id.is_(None), in_lane)
    free = free.order_by(Slot.number).limit(1).with_for_update(skip_locked=True)
    slot, now = session.scalars(free).first(), database_ms(session)
    # A job may start after its inputs are complete, and after the delay of a retry. A `not_before`
    # beyond the longest delay was written before the system clock was set back.
    longest = max([AGAIN_DELAY_MS, *RETRY_DELAYS_MS.values()])
    is_due = (Job.not_before <= now) | (Job.not_before > now + longest)
    due = launch_order(now, lane).where(~waiting(), is_due).limit(1)
    job = session.scalars(due.with_for_update(of=Job, skip_locked=True)).first()
    if slot is None or job is None:
        return None
    with damaged_row_errors(job.id):
        number = job.attempts_made + 1
        if not move(session, job, State.STARTING, attempts_made=number):
            return None  # it is no longer queued
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
        note(session, job.id, "running", SUPERVISOR_ACTOR, f"attempt {attempt.n}")


@dataclass(frozen=True)
class AttemptOutcome:
    """The transition of a job after its attempt has ended.

    Attributes:
        state: new state.
        text: reason, for the history.
        spend_retry: the next attempt uses up a retry.
        delay_ms: delay of the next attempt.
    """

    state: State
    text: str
    spend_retry: bool = False
    delay_ms: int = 0


def verdict(
    outcome: str | None, code: int | None, desired: str, retries_left: int, here: bool = False
) -> AttemptOutcome:
    """The next state of a job whose process has ended.

    Args:
        outcome: outcome that the process recorded before it exited; None if it did not.
        code: exit code, negative for a signal, None if unknown.
        desired: the user's request: "run", "stop" or "kill".
        retries_left: number of automatic retries that are left.
        here: the process ran on the supervisor's machine, where a restart of the dashboard solves a
            mismatch of versions.
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
        return AttemptOutcome(State.FAILED, "the machine has another version of Slimscope")
    is_folder_gone = code == Exit.FOLDER_GONE
    reason = "its folder was removed" if is_folder_gone else f"the process died{how}"
    if retries_left > 0:
        delay_ms = 0 if is_folder_gone else RETRY_DELAYS_MS.get(retries_left - 1, 0)
        return AttemptOutcome(State.QUEUED, f"{reason}; will resume", True, delay_ms)
    return AttemptOutcome(State.LOST, f"{reason}; no automatic retry is left")


def end_attempt(session: Session, attempt: Attempt, code: int | None, fence: str = "") -> None:
    """Close an attempt whose process has ended, free its slot and update its job.

    Args:
        code: exit code of the process; None if unknown.
        fence: outcome for a process that never claimed the attempt; if it has claimed it meanwhile,
            nothing changes.
    """
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
    result = verdict(row.outcome, code, job.desired, job.retries_left, here)
    values: dict[str, object] = {"finished_at": now}
    if result.state == State.QUEUED:
        retries_left, start_ms = job.retries_left - result.spend_retry, now + result.delay_ms
        values = {"retries_left": retries_left, "not_before": start_ms}
    elif code == Exit.OTHER_VERSION:
        values["error"] = OTHER_VERSION
    if result.state == State.LOST:
        do = LOG_HINT if code is not None and code >= 0 else KILLED_HINT
        values["error"] = {"what": "The run was lost.", "why": result.text, "do": do}
    if move(session, job, result.state, eta_s=None, **values):
        note(session, job.id, result.state, SUPERVISOR_ACTOR, result.text)


def first_run_id(session: Session) -> int | None:
    """The id of the first run; None if the database assigns the id.

    Without it, SQLite would continue from the examples, whose ids are negative."""
    if not dialect_of(session).reuses_largest_id:
        return None
    return None if session.scalar(select(Job.id).where(Job.id > 0).limit(1)) else 1
