"""The supervisor of a data folder: starts queued jobs, monitors them, and stops them on request.

It is a separate process (`python -m backend.queue.supervisor`), one per data folder. If several
machines use one database, one of their supervisors is active, and the others wait for its end.
Killing it or the dashboard does not stop jobs: the next supervisor finds their processes. An
iteration:

    heartbeat -> reconcile attempts with their processes -> apply stop requests -> launch
"""

import contextlib
import logging
import math
import platform
import sqlite3
import time

from sqlalchemy import delete, select, update
from sqlalchemy.exc import OperationalError

from backend.errors import ConflictError, is_disk_full
from backend.logs import start_logging
from backend.queue import lifecycle, scheduling
from backend.queue.actor import GUEST, Actor
from backend.queue.artifacts import delete_folder, work_folder
from backend.queue.engines import engine_of
from backend.queue.engines.base import Engine, PollResult, Room
from backend.queue.engines.local import LocalEngine
from backend.queue.launcher import SUPERVISOR, launch_request, spare_request
from backend.queue.lifecycle import SUPERVISOR_ACTOR
from backend.queue.service import cancel
from backend.queue.upkeep import upkeep
from backend.settings import settings
from backend.store.dialects import dialect_of
from backend.store.dialects.base import NamedLock
from backend.store.migrate import other_version, upgrade
from backend.store.session import (
    DatabaseLock,
    database_ms,
    engine_for,
    fetched,
    fetched_rows,
    fetched_value,
    reading,
    writing,
)
from backend.store.states import ACTIVE, QUICK_SLOT, Exit, Lane, State
from backend.store.tables import CLUSTER, Attempt, Job, Slot, Supervisor, run_name

log = logging.getLogger("slimscope.supervisor")
BEAT_S = 2.0
SHRINK_LOG_S = 5.0
GUEST_OVERTIME_FACTOR = 3  # multiple of `guest_seconds` after which a guest's run is cancelled
OVERTIME = Actor("the time limit", "host")
NEVER = "never started"
EXIT_GRACE_MS = 30_000  # time in which a process has to exit after it recorded its outcome
SHUTDOWN_GRACE_MS = (
    60_000  # time in which a process has to exit after `offline_s` without the database
)
KILL_AFTER_S = 5.0  # between SIGTERM and SIGKILL
SPARE_LEAD_S = 30.0  # expected time until the next start at which a spare process is started


class SupervisorLoop:
    """The supervisor's loop, which starts runs on one engine.

    It also monitors local attempts from before the setting of the engine was changed. All state is
    in the database, except for two times per attempt, by a monotonic clock."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._local = LocalEngine(settings().slots) if engine.remote else engine
        self._engines = [engine, self._local] if engine.remote else [engine]
        self._room, self._slots = Room(0, is_reachable=False), 0
        self._lanes = (Lane.SLOTS,) if engine.remote else (Lane.SLOTS, Lane.QUICK)
        self.host = platform.node()
        self._beat_at = self._shrunk_at = self._called_at = -math.inf
        # monotonic times by attempt
        self._stop_seen_at: dict[int, float] = {}
        self._started_at: dict[int, float] = {}
        self._update_slots()
        with writing() as session:
            if engine.remote:  # counts as an answer, so that pages do not report silence
                session.merge(Supervisor(host=CLUSTER, beat_at=database_ms(session)))
            else:
                session.execute(delete(Supervisor).where(Supervisor.host == CLUSTER))
                session.merge(Slot(host=engine.host, number=QUICK_SLOT))

    def turn(self) -> bool:
        """Run one iteration; return True while a job is queued or running."""
        self._update_slots()
        now = time.monotonic()  # unlike the system clock, it is never set back
        if now - self._beat_at > BEAT_S:
            self._beat_at = now
            with writing() as session:
                beat_at = database_ms(session)
                session.merge(Supervisor(host=self.host, beat_at=beat_at))
                if self.engine.remote and self._room.is_reachable:
                    session.merge(Supervisor(host=CLUSTER, beat_at=beat_at))
        if now - self._shrunk_at > SHRINK_LOG_S:
            self._shrunk_at = now
            shrink_log()
        self._reconcile_all(self._live())
        for attempt, job in self._live():
            with lifecycle.isolate_failures(job.id):
                self._apply(attempt, job)
        for lane in self._lanes:
            while self._launch_next(lane):
                pass
        return self.busy()

    def _update_slots(self) -> None:
        """Read the engine's capacity and add missing slots; surplus slots stay unused."""
        self._room = self.engine.room()
        if self._room.places > self._slots:
            with writing() as session:
                for number in range(self._slots, self._room.places):
                    session.merge(Slot(host=self.engine.host, number=number))
            self._slots = self._room.places

    def busy(self) -> bool:
        """Return True while a job is queued or running."""
        active = select(Job.id).where(Job.state.in_([*ACTIVE])).limit(1)
        return fetched_value(active) is not None

    def prepare(self) -> bool:
        """Start, keep or end the spare process; return True if a user is about to add a run.

        The imports of a spare process take time from live runs. It is started only if a run waits
        and a live run has less than `SPARE_LEAD_S` left, or if a slot is free and a user fills in
        the form of a new run. It stays while the run waits, or `idle_exit` after the user's last
        action."""
        now = time.monotonic()
        if SUPERVISOR.is_called():
            self._called_at = now
        is_called = now - self._called_at < settings().idle_exit
        if isinstance(self.engine, LocalEngine):
            remaining_s, job = scheduling.next_start()
            is_expected = is_called and len(remaining_s) < self._room.places
            launch = None
            with lifecycle.isolate_failures(job.id if job else None):
                launch = spare_request(job) if is_expected or (job and remaining_s) else None
            is_soon = min(remaining_s, default=math.inf) < SPARE_LEAD_S
            self.engine.prepare(launch, is_expected or is_soon)
        return is_called

    def _live(self) -> list[tuple[Attempt, Job]]:
        live = select(Attempt, Job).join(Job, Job.id == Attempt.job_id)
        rows = fetched_rows(live.where(Attempt.ended_at.is_(None)))
        return [(attempt, job) for attempt, job in rows]

    def _engine_of(self, attempt: Attempt) -> Engine | None:
        """The engine of an attempt; None for another cluster than that of the settings."""
        if attempt.engine == self.engine.name:
            return self.engine
        return self._local if attempt.engine == LocalEngine.name else None

    def _reconcile_all(self, live: list[tuple[Attempt, Job]]) -> None:
        """Update all attempts from the status of their processes, with one request per engine."""
        launched = [(attempt, job) for attempt, job in live if attempt.engine_ref is not None]
        for attempt, _ in live:
            if attempt.engine_ref is None:  # a supervisor died between claim and launch
                self._end(attempt, None, fence=NEVER)
        for engine in self._engines:
            pairs = [pair for pair in launched if self._engine_of(pair[0]) is engine]
            for (attempt, job), poll in zip(pairs, self._poll_all(engine, pairs), strict=True):
                with lifecycle.isolate_failures(job.id):
                    self._reconcile(attempt, job, poll)
        for attempt, job in launched:
            if self._engine_of(attempt) is None:
                with lifecycle.isolate_failures(job.id):
                    self._reconcile(attempt, job, PollResult("unknown"))

    def _poll_all(self, engine: Engine, pairs: list[tuple[Attempt, Job]]) -> list[PollResult]:
        """The status of processes.

        If a reference is malformed, local processes are polled one by one, so that only its job
        fails. A cluster may have sent a malformed answer, which must not end a run."""
        try:
            return engine.poll([attempt.engine_ref or {} for attempt, _ in pairs])
        except (KeyError, TypeError, ValueError):
            if engine.remote:
                return [PollResult("unknown")] * len(pairs)
            polls = [PollResult("running")] * len(pairs)
            for index, (attempt, job) in enumerate(pairs):
                with lifecycle.isolate_failures(job.id):
                    (polls[index],) = engine.poll([attempt.engine_ref or {}])
            return polls

    def _reconcile(self, attempt: Attempt, job: Job, poll: PollResult) -> None:
        """Update an attempt from the status of its process."""
        if poll.state == "exited":
            if poll.why and attempt.started_at is None:
                with writing() as session:
                    lifecycle.note(
                        session, attempt.job_id, "not started", SUPERVISOR_ACTOR, poll.why
                    )
            # A cluster that does not know the job never got the launch: the supervisor died before
            # it, or the request was lost. Local attempts have no reference before the launch.
            is_unlaunched = attempt.started_at is None and poll.code is None and not poll.why
            fence = NEVER if is_unlaunched and attempt.engine != LocalEngine.name else ""
            self._end(attempt, poll.code, fence)
        elif poll.state == "unknown" and _is_silent(attempt):
            self._end(attempt, None)
        elif attempt.outcome and _is_silent(attempt):  # the process hangs after its outcome
            engine = self._engine_of(attempt)
            if engine is None:
                return
            engine.kill(attempt.engine_ref or {})
            if engine.remote:  # it may report the process as running forever
                self._end(attempt, None)
        elif poll.state == "running" and job.state == State.STARTING and attempt.started_at:
            with writing(durable=True) as session:
                lifecycle.mark_running(session, attempt)

    def _end(self, attempt: Attempt, code: int | None, fence: str = "") -> None:
        """End an attempt; delete the checkpoints if the job has succeeded."""
        with writing(durable=True) as session:
            lifecycle.end_attempt(session, attempt, code, fence)
            job = session.get_one(Job, attempt.job_id)
        if (engine := self._engine_of(attempt)) and attempt.engine_ref is not None:
            engine.forget(attempt.engine_ref)
        for times in (self._stop_seen_at, self._started_at):
            times.pop(attempt.id, None)
        if job.state == State.SUCCEEDED:
            delete_folder(work_folder(job.run))

    def clear(self) -> None:
        """Clean up after a killed supervisor: delete leftover checkpoints of the newest succeeded
        jobs, and fail queued jobs whose lane is damaged."""
        queued = Job.state == State.QUEUED
        for job_id in fetched(select(Job.id).where(queued, Job.lane.not_in([*Lane]))):
            lifecycle.fail_job(job_id, ValueError("its lane does not exist"))
        succeeded = select(Job.kind, Job.id).where(Job.state == State.SUCCEEDED)
        for kind, number in fetched_rows(succeeded.order_by(Job.finished_at.desc()).limit(1000)):
            delete_folder(work_folder(run_name(kind, number)))

    def _apply(self, attempt: Attempt, job: Job) -> None:
        """Cancel a run that exceeds its time limit, and apply a stop request.

        A stop is first a flag in the database, then SIGTERM, then SIGKILL."""
        if job.desired == "run" and attempt.started_at is not None:
            now = time.monotonic()
            if attempt.id not in self._started_at:
                self._started_at[attempt.id] = now - _age_ms(attempt.started_at) / 1000
            limits_s = [3600 * settings().job_hours] if settings().job_hours else []
            if job.owner.startswith(GUEST):  # estimates are not exact
                limits_s.append(GUEST_OVERTIME_FACTOR * settings().guest_seconds)
            if now - self._started_at[attempt.id] > min(limits_s, default=math.inf):
                with contextlib.suppress(ConflictError):  # the run has ended meanwhile
                    cancel([job.run], OVERTIME)
        engine = self._engine_of(attempt)
        if job.desired == "run" or attempt.engine_ref is None or engine is None:
            return
        if job.state != State.CANCELLING:
            with writing(durable=True) as session:
                lifecycle.move(session, job, State.CANCELLING)
        now = time.monotonic()
        overdue_s = now - self._stop_seen_at.setdefault(attempt.id, now) - settings().stop_grace
        if job.desired == "kill" or overdue_s > KILL_AFTER_S:
            engine.kill(attempt.engine_ref)
        elif overdue_s > 0:
            engine.stop(attempt.engine_ref)

    def _launch_next(self, lane: Lane) -> bool:
        """Start the next queued job if a slot is free; return True if a job was started."""
        if not self._room.is_reachable or not scheduling.ready_job_ids(lane, limit=1):
            return False  # the usual case needs no write lock
        if other_version():  # a process of another version would refuse to run
            return False
        with lifecycle.isolate_failures():
            with writing(durable=True) as session:
                attempt = lifecycle.start_attempt(
                    session, self.engine.host, self.engine.name, self._room.places, lane
                )
                if attempt is None:
                    return False
                job = session.get_one(Job, attempt.job_id)
                with lifecycle.damaged_row_errors(job.id):
                    launch = launch_request(session, attempt, job, self.engine.remote)
                if (reference := self.engine.reference(launch)) is not None:
                    attempt.engine_ref = reference
            try:
                # a stored variable may contain NUL
                with lifecycle.damaged_row_errors(attempt.job_id):
                    ref = self.engine.launch(launch)
            except OSError as error:
                with writing(durable=True) as session:
                    lifecycle.note(
                        session,
                        attempt.job_id,
                        "not started",
                        SUPERVISOR_ACTOR,
                        str(error),
                    )
                self._end(attempt, Exit.NO_SPACE if is_disk_full(error) else None)
                return False
            if reference is None:
                row = update(Attempt).where(Attempt.id == attempt.id)
                with writing(durable=True) as session:
                    session.execute(row.values(engine_ref=ref))
        return True


def _age_ms(moment: int) -> int:
    """Milliseconds since a moment of the database's clock."""
    with reading() as session:
        return database_ms(session) - moment


def _is_silent(attempt: Attempt) -> bool:
    """Return True if the last heartbeat of an attempt is so old that its process must have ended.

    The limit is short after a recorded outcome, and else the longest time without the database."""
    limit_ms = (
        EXIT_GRACE_MS if attempt.outcome else SHUTDOWN_GRACE_MS + int(1000 * settings().offline_s)
    )
    return _age_ms(attempt.beat_at or attempt.launched_at) > limit_ms


def shrink_log() -> None:
    """Write the database's log into the database; only the supervisor does it."""
    engine = engine_for(settings().url)
    dialect_of(engine).shrink_log(engine)


def main() -> None:
    """Supervise until no job has been queued or running for `idle_exit` seconds."""
    while (lock := SUPERVISOR.hold()) is not None:
        upgrade()
        lead = DatabaseLock(engine_for(settings().url), NamedLock.SUPERVISOR)
        loop = SupervisorLoop(engine_of(settings()))
        loop.clear()
        with upkeep(lead):
            run_until_idle(loop, lead)
        shrink_log()
        lead.release()
        lock.release()
        # a job may have been added just before the release
        if not loop.busy() or other_version():
            return


def run_until_idle(loop: SupervisorLoop, lead: DatabaseLock) -> None:
    """Run the loop until it is idle, the data folder is gone, or a new version is installed.

    The loop pauses while the supervisor of another machine is active. After an error, such as a
    full disk or a locked database, it retries; jobs continue."""
    busy_at, checked_at = time.monotonic(), -math.inf
    while time.monotonic() - busy_at < settings().idle_exit:
        try:
            if time.monotonic() - checked_at > BEAT_S:
                checked_at = time.monotonic()
                if message := other_version():
                    log.warning(message)
                    return
                if lead.is_held() and loop.prepare():
                    busy_at = time.monotonic()
            if loop.turn() if lead.is_held() else loop.busy():
                busy_at = time.monotonic()
        except Exception as error:
            if not settings().data_dir.is_dir():
                return
            busy_at = time.monotonic()
            log.warning("%s: %s", type(error).__name__, error)
            if not isinstance(error, OperationalError | sqlite3.Error | OSError):
                time.sleep(5.0)  # an unexpected error will probably recur
        time.sleep(0.25)


if __name__ == "__main__":
    start_logging()
    main()
