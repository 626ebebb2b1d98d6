"""The supervisor of a data folder: starts queued jobs, monitors them, and stops them on request.

It runs as a separate process (`python -m backend.queue.supervisor`), one per data folder. Where
several machines use one database, one of their supervisors works, and the others wait for its end.
Killing it or the dashboard does not stop jobs: the next supervisor finds their processes. One
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
from backend.queue.service import cancel
from backend.queue.upkeep import upkeep
from backend.settings import settings
from backend.store.dialects import dialect_of
from backend.store.dialects.base import NamedLock
from backend.store.migrate import other_version, upgrade
from backend.store.session import DatabaseLock, database_ms, engine_for, reading, writing
from backend.store.states import ACTIVE, QUICK_SLOT, Exit, Lane, State
from backend.store.tables import CLUSTER, Attempt, Job, Slot, Supervisor, run_name

log = logging.getLogger("slimscope.supervisor")
BEAT_S = 2.0
SHRINK_LOG_S = 5.0
LENIENCE = 3  # a guest's run is cancelled after this multiple of `guest_seconds`
OVERTIME = Actor("the time limit", "host")
NEVER = "never started"
SAID_MS = 30_000  # after its outcome a process has nothing more to do
LEAVING_MS = 60_000  # a process takes to leave
KILL_AFTER_S = 5.0  # between SIGTERM and SIGKILL
SOON_S = 30.0  # until the next run, for which a process is made ready


class SupervisorLoop:
    """The loop over one engine, which starts runs. Attempts of another one, left from before the
    setting was changed, are watched as far as this machine can. All state is in the database,
    except for two times of each attempt, kept by a clock that nobody sets."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._local = LocalEngine(settings().slots) if engine.remote else engine
        self._engines = [engine, self._local] if engine.remote else [engine]
        self._room, self._slots = Room(0, known=False), 0
        self._lanes = (Lane.SLOTS,) if engine.remote else (Lane.SLOTS, Lane.QUICK)
        self.host = platform.node()
        self._beat_at = self._shrunk_at = self._called_at = -math.inf
        self._asked: dict[int, float] = {}  # attempt -> time its stop request was first seen
        self._began: dict[int, float] = {}  # attempt -> time its process began
        self._make_room()
        with writing() as session:
            if engine.remote:  # as if it had just answered
                session.merge(Supervisor(host=CLUSTER, beat_at=database_ms(session)))
            else:
                session.execute(delete(Supervisor).where(Supervisor.host == CLUSTER))
                session.merge(Slot(host=engine.host, number=QUICK_SLOT))

    def turn(self) -> bool:
        """Run one iteration; return whether any job is queued or running."""
        self._make_room()
        now = time.monotonic()  # the system clock may be set back
        if now - self._beat_at > BEAT_S:
            self._beat_at = now
            with writing() as session:
                moment = database_ms(session)
                session.merge(Supervisor(host=self.host, beat_at=moment))
                if self.engine.remote and self._room.known:
                    session.merge(Supervisor(host=CLUSTER, beat_at=moment))
        if now - self._shrunk_at > SHRINK_LOG_S:
            self._shrunk_at = now
            shrink_log()
        self._reconcile_all(self._live())
        for attempt, job in self._live():
            with lifecycle.failing_alone(job.id):
                self._apply(attempt, job)
        for lane in self._lanes:
            while self._launch_next(lane):
                pass
        return self.busy()

    def _make_room(self) -> None:
        """Ask the engine how many jobs it takes, and see to it that there are slots for them. Those
        of machines that have left stay, unused."""
        self._room = self.engine.room()
        if self._room.places > self._slots:
            with writing() as session:
                for number in range(self._slots, self._room.places):
                    session.merge(Slot(host=self.engine.host, number=number))
            self._slots = self._room.places

    def busy(self) -> bool:
        with reading() as session:
            active = select(Job.id).where(Job.state.in_([*ACTIVE])).limit(1)
            return session.scalar(active) is not None

    def prepare(self) -> bool:
        """Have a process of this machine ready for the run that starts next; return whether a
        person is about to add one.

        It imports what it needs beside the runs at work, so only where that is of use: a run waits,
        and one at work has less than `SOON_S` left; or a place is free, and a person writes a new
        run. It stays for as long as the run waits, or the person was there within `idle_exit`."""
        now = time.monotonic()
        if SUPERVISOR.is_called():
            self._called_at = now
        is_called = now - self._called_at < settings().idle_exit
        if isinstance(self.engine, LocalEngine):
            left, job = scheduling.next_start()
            is_asked = is_called and len(left) < self._room.places
            launch = None
            with lifecycle.failing_alone(job.id if job else None):
                launch = spare_request(job) if is_asked or (job and left) else None
            self.engine.prepare(launch, is_asked or min(left, default=math.inf) < SOON_S)
        return is_called

    def _live(self) -> list[tuple[Attempt, Job]]:
        live = select(Attempt, Job).join(Job, Job.id == Attempt.job_id)
        with reading() as session:
            rows = session.execute(live.where(Attempt.ended_at.is_(None)))
            return [(attempt, job) for attempt, job in rows]

    def _engine_of(self, attempt: Attempt) -> Engine | None:
        """The engine of an attempt; None if it is not there any more."""
        if attempt.engine == self.engine.name:
            return self.engine
        return self._local if attempt.engine == LocalEngine.name else None

    def _reconcile_all(self, live: list[tuple[Attempt, Job]]) -> None:
        """Update all attempts from the status of their processes: each engine is asked once."""
        known = [(attempt, job) for attempt, job in live if attempt.engine_ref is not None]
        for attempt, _ in live:
            if attempt.engine_ref is None:  # a supervisor died between claim and start
                self._end(attempt, None, fence=NEVER)
        for engine in self._engines:
            asked = [pair for pair in known if self._engine_of(pair[0]) is engine]
            for (attempt, job), poll in zip(asked, self._polled(engine, asked), strict=True):
                with lifecycle.failing_alone(job.id):
                    self._reconcile(attempt, job, poll)
        for attempt, job in known:
            if self._engine_of(attempt) is None:
                with lifecycle.failing_alone(job.id):
                    self._reconcile(attempt, job, PollResult("unknown"))

    def _polled(self, engine: Engine, asked: list[tuple[Attempt, Job]]) -> list[PollResult]:
        """The status of processes; each is asked for alone where a reference is none. Of a cluster
        that may be its answer, which must end no run."""
        try:
            return engine.poll([attempt.engine_ref or {} for attempt, _ in asked])
        except (KeyError, TypeError, ValueError):
            if engine.remote:
                return [PollResult("unknown")] * len(asked)
            polls = [PollResult("running")] * len(asked)
            for place, (attempt, job) in enumerate(asked):
                with lifecycle.failing_alone(job.id):
                    (polls[place],) = engine.poll([attempt.engine_ref or {}])
            return polls

    def _reconcile(self, attempt: Attempt, job: Job, poll: PollResult) -> None:
        """Update an attempt from the status of its process."""
        if poll.state == "exited":
            if poll.why and attempt.started_at is None:
                with writing() as session:
                    lifecycle.note(session, attempt.job_id, "not started", lifecycle.ME, poll.why)
            # The engine has never heard of it: its supervisor died before the launch, or the launch
            # did not get through. On this machine there is no reference before the launch.
            unborn = attempt.started_at is None and poll.code is None and not poll.why
            fence = NEVER if unborn and attempt.engine != LocalEngine.name else ""
            self._end(attempt, poll.code, fence)
        elif poll.state == "unknown" and _is_silent(attempt):
            self._end(attempt, None)
        elif attempt.outcome and _is_silent(attempt):  # its process is there for no reason
            engine = self._engine_of(attempt)
            if engine is None:
                return
            engine.kill(attempt.engine_ref or {})
            if engine.remote:  # it may believe for ever that the process runs
                self._end(attempt, None)
        elif poll.state == "running" and job.state == State.STARTING and attempt.started_at:
            with writing(durable=True) as session:
                lifecycle.mark_running(session, attempt)

    def _end(self, attempt: Attempt, code: int | None, fence: str = "") -> None:
        """End an attempt; delete the checkpoints of a job that succeeded."""
        with writing(durable=True) as session:
            lifecycle.end_attempt(session, attempt, code, fence)
            job = session.get_one(Job, attempt.job_id)
        if (engine := self._engine_of(attempt)) and attempt.engine_ref is not None:
            engine.forget(attempt.engine_ref)
        for times in (self._asked, self._began):
            times.pop(attempt.id, None)
        if job.state == State.SUCCEEDED:
            delete_folder(work_folder(job.run))

    def clear(self) -> None:
        """Delete checkpoints of succeeded jobs that a killed supervisor left behind, so of the last
        ones, and fail jobs that nobody carries out."""
        with reading() as session:
            lost = select(Job.id).where(Job.state == State.QUEUED, Job.lane.not_in([*Lane]))
            nowhere = session.scalars(lost).all()
        for job_id in nowhere:
            lifecycle.fail_job(job_id, ValueError("its lane is none"))
        with reading() as session:
            done = select(Job.kind, Job.id).where(Job.state == State.SUCCEEDED)
            newest = session.execute(done.order_by(Job.finished_at.desc()).limit(1000)).all()
        for kind, number in newest:
            delete_folder(work_folder(run_name(kind, number)))

    def _apply(self, attempt: Attempt, job: Job) -> None:
        """Cancel a run that exceeds the limit of the host, or of guests. Apply a stop request:
        first the flag in the database, then SIGTERM, then SIGKILL."""
        if job.desired == "run" and attempt.started_at is not None:
            now = time.monotonic()
            if attempt.id not in self._began:
                self._began[attempt.id] = now - _age_ms(attempt.started_at) / 1000
            limits = [3600 * settings().job_hours] if settings().job_hours else []
            if job.owner.startswith(GUEST):  # several times theirs: the estimate was wrong
                limits.append(LENIENCE * settings().guest_seconds)
            if now - self._began[attempt.id] > min(limits, default=math.inf):
                with contextlib.suppress(ConflictError):  # it ended meanwhile
                    cancel(job.run, OVERTIME)
        engine = self._engine_of(attempt)
        if job.desired == "run" or attempt.engine_ref is None or engine is None:
            return
        if job.state != State.CANCELLING:
            with writing(durable=True) as session:
                lifecycle.move(session, job, State.CANCELLING)
        now = time.monotonic()
        waited = now - self._asked.setdefault(attempt.id, now) - settings().stop_grace
        if job.desired == "kill" or waited > KILL_AFTER_S:
            engine.kill(attempt.engine_ref)
        elif waited > 0:
            engine.stop(attempt.engine_ref)

    def _launch_next(self, lane: Lane) -> bool:
        """Start the next queued job if there is one and a slot is free."""
        if not self._room.known or not scheduling.waits_for(lane, limit=1):
            return False  # most end here, without the write lock
        if other_version():  # whose process would not begin
            return False
        with lifecycle.failing_alone():
            with writing(durable=True) as session:
                attempt = lifecycle.start_attempt(
                    session, self.engine.host, self.engine.name, self._room.places, lane
                )
                if attempt is None:
                    return False
                job = session.get_one(Job, attempt.job_id)
                with lifecycle.rows_of(job.id):
                    launch = launch_request(session, attempt, job, self.engine.remote)
                if (known := self.engine.reference(launch)) is not None:
                    attempt.engine_ref = known
            try:
                with lifecycle.rows_of(attempt.job_id):  # such as NUL in a stored variable
                    ref = self.engine.launch(launch)
            except OSError as error:
                with writing(durable=True) as session:
                    lifecycle.note(session, attempt.job_id, "not started", lifecycle.ME, str(error))
                self._end(attempt, Exit.NO_SPACE if is_disk_full(error) else None)
                return False
            if known is None:
                mine = update(Attempt).where(Attempt.id == attempt.id)
                with writing(durable=True) as session:
                    session.execute(mine.values(engine_ref=ref))
        return True


def _age_ms(moment: int) -> int:
    """Milliseconds since a moment of the database's clock."""
    with reading() as session:
        return database_ms(session) - moment


def _is_silent(attempt: Attempt) -> bool:
    """Whether the process of an attempt, of which its engine knows nothing, has ended: it has said
    how it ended, or nothing for longer than one may work without the database."""
    limit = SAID_MS if attempt.outcome else LEAVING_MS + int(1000 * settings().offline_s)
    return _age_ms(attempt.beat_at or attempt.launched_at) > limit


def shrink_log() -> None:
    """Write what the log of the database holds into it, which only the supervisor does."""
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
        if not loop.busy() or other_version():  # else a job was added just before the release
            return


def run_until_idle(loop: SupervisorLoop, lead: DatabaseLock) -> None:
    """Run the loop until idle, and while this is the supervisor that works. After an error, such as
    a full disk or a locked database, it retries; jobs continue. Where the data folder is gone, so
    is its work; after an upgrade, it is that of the new version."""
    busy_at, looked_at = time.monotonic(), -math.inf
    while time.monotonic() - busy_at < settings().idle_exit:
        try:
            if time.monotonic() - looked_at > BEAT_S:
                looked_at = time.monotonic()
                if why := other_version():
                    log.warning(why)
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
                time.sleep(5.0)  # the error will be there in the next turn, too
        time.sleep(0.25)


if __name__ == "__main__":
    start_logging()
    main()
