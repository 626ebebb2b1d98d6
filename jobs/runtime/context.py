"""The `Reporter` of a running job, backed by the database. Every write is fenced: it counts only
while this attempt, with its token, is the job's newest. When it is not, the process ends at once
and has changed nothing."""

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.calibration.kept_stage import KeptStage
from backend.checkpoints import Checkpoints, HeldFolder
from backend.compiler import kernel_version
from backend.errors import CancelledError, ComputeError, ConfigError
from backend.metric_key import MetricKey
from backend.queue.artifacts import fetch_work, log_file, run_folder, store, work_folder
from backend.queue.engines.local import LocalEngine, reference
from backend.queue.removal import folder_bytes
from backend.queue.service import ESTIMATED_SECONDS
from backend.settings import settings
from backend.statistics.tensors import TensorProfile, TensorSnapshot
from backend.store import queries
from backend.store.json_column import check_intact
from backend.store.session import change, database_ms, locked, now_ms, reading, writing
from backend.store.states import Exit
from backend.store.tables import (
    KEPT_REASON,
    Artifact,
    Attempt,
    DecoderRow,
    Job,
    MetricPoint,
    Result,
    StepTime,
    Table,
)
from jobs import estimates
from jobs.estimates import PhaseWork
from jobs.runtime.figures import (
    FigureBuffer,
    FigureSpool,
    LeaseLostError,
    Row,
    profile_row,
    tensor_row,
    upsert,
)
from jobs.runtime.progress import EVERY, Phases, Progress, UsageSampler
from jobs.runtime.uploads import Uploads

SPOOL = ".figures.jsonl"  # in the folder of the checkpoints
STORE_AGAIN_S = 10.0
SILENT_S = 10.0  # after which the log is told how far the run is; later at times `EVERY` apart
OVERDUE_S = 20.0  # for a run to stop by itself; well before another machine takes it over
LEAVING_S = 20.0  # for a run to store what is left; less than its silence is taken for its end


class JobContext:
    """One attempt's view of its job. Made by `claim`, closed by `finish`. A heartbeat thread writes
    progress and buffered figures once a second, and reads what people want."""

    def __init__(self, attempt: Attempt, job: Job) -> None:
        self.job_id, self.attempt_id, self.token = job.id, attempt.id, attempt.token
        self.run, self.attempt_n, self.kind, self.config = job.run, attempt.n, job.kind, job.config
        self.folder: Path = run_folder(job.run)
        self.work: Path = work_folder(job.run)
        own_log = log_file(job.run, attempt.n)
        self._uploads = Uploads(store(), own_log, self.work / SPOOL, lambda text: self.log(text))
        self.checkpoints = Checkpoints(self.work, self.settle, attempt.n, self._uploads.add)
        self.resumed_from: str | None = None
        self._is_elsewhere = attempt.engine != LocalEngine.name  # than where pages are shown
        named = "host" in (attempt.engine_ref or {})
        self._is_shared = self._is_elsewhere or named  # with other machines
        self._held: HeldFolder | None = None
        self._figures = FigureBuffer(
            lambda rows, durable: self._write(rows, durable),
            FigureSpool(self.work / SPOOL),
            lambda text: self.log(text),
        )
        self._stop = threading.Event()
        self._closed = threading.Event()
        self._progress = Progress(job.environment.get(ESTIMATED_SECONDS))
        self._usage: UsageSampler | None = None
        self._began = self._logged = time.monotonic()
        self._thread = threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True)

    @property
    def plan(self) -> dict[str, Any]:
        """What the run does to each layer, as it was stored when it was submitted. Raises
        ConfigError: there is no plan, or it cannot be read."""
        stored = queries.plan(self.job_id)
        check_intact(stored, "The plan")
        if stored is None:
            raise ConfigError("This run has no plan.", "It was not submitted.", "Add it anew.")
        return stored

    # the Reporter ----------------------------------------------------------------------------

    def progress(
        self, done: float, total: float, stage: str, phase_end: float | None = None
    ) -> None:
        """How far the job is; `phase_end`: where its current phase ends, in units of `total`."""
        is_awaited = not self._progress.is_under_way  # by people, who see little else yet
        self._progress.report(done, total, stage, total if phase_end is None else phase_end)
        if is_awaited:
            self._figures.ask()

    def metric(self, key: MetricKey, value: float, step: int) -> None:
        if not math.isfinite(value):
            self.log(f"{key} is {value} at {key.axis} {step}; it is not drawn.")
            return
        self._add(MetricPoint, **asdict(key), step=step, at=now_ms(), value=float(value))

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        self._figures.add(tensor_row(self.job_id, snapshot))

    def profile(self, profile: TensorProfile) -> None:
        self._figures.add(profile_row(self.job_id, profile))

    def log(self, text: str) -> None:
        self._logged = time.monotonic()
        with suppress(OSError):  # a full disk must not end the run
            line = f"{time.strftime('%H:%M:%S')}  {text}\n"  # written at once: threads log
            print(line, end="", flush=True)

    def should_stop(self) -> bool:
        if not self._stop.is_set() and self._figures.is_away_too_long():
            self.log("The database is away for too long: the run stops until it is back.")
            self._stop.set()
        return self._stop.is_set()

    # what a job may record besides -----------------------------------------------------------

    def result(
        self,
        stage: str,
        metric: MetricKey,
        value: float,
        *,
        stderr: float | None = None,
        n: int | None = None,
        **details: Any,
    ) -> None:
        """Records one of the figures the run ends with; a later one of that metric replaces it.
        Raises ComputeError: the value is not finite."""
        if not math.isfinite(value):
            raise ComputeError(
                f"{metric} of {stage} is {value}.",
                "The computation overflowed or divided by zero.",
                "Choose float32 as forward precision, or other text.",
            )
        self._add(
            Result,
            stage=stage,
            family=metric.family,
            series=metric.series,
            value=float(value),
            stderr=stderr,
            n=n,
            details=details,
        )
        self.settle()

    def phases(self, work: Sequence[PhaseWork]) -> Phases:
        """The phases of the run, each as wide as its share of the time that the work is expected to
        take. The work is kept: later estimates learn from it."""
        expected = estimates.estimate(self.kind, self.config, work)
        timed = sum(each.amount for each in work if each.unit == "seconds")
        products = sum(each.amount for each in work if each.unit in ("float32", "bfloat16"))
        self.outcome(flops=2 * products, timed_seconds=timed)
        rates, steps = estimates.rates_here().model_dump(), estimates.by_step(work)
        about = {"kernels": kernel_version(), "rates": rates, "steps": steps}
        self.environment(**{estimates.WORK: about})
        return Phases(self, expected.phases)

    def outcome(self, **columns: str | float) -> None:
        """Record columns of the run, such as `kept_stage`."""
        job = update(Job).where(Job.id == self.job_id).values(**columns)
        self._patiently(lambda session: session.execute(job))

    def keep(self, kept: KeptStage) -> None:
        """Record which stage the run keeps, and why."""
        self.outcome(kept_stage=kept.stage)
        self.environment(**{KEPT_REASON: kept.reason})

    def step_time(self, step: str, seconds: float) -> None:
        """Record the seconds of one step, over all attempts."""
        self._add(StepTime, step=step, seconds=seconds)
        self.settle()

    def decoder(self, name: str, report: dict[str, Any]) -> None:
        self._add(DecoderRow, decoder=name, report=report)
        self.settle()

    def has_result(self, stage: str, metric: MetricKey) -> bool:
        """Whether an earlier attempt has recorded it already."""
        if self._figures.has_result(stage, metric):
            return True

        def stored() -> bool:
            with reading() as session:
                key = (self.job_id, stage, metric.family, metric.series)
                return session.get(Result, key) is not None

        return self._figures.patiently(stored)

    def artifact(self, path: Path, kind: str, sha256: str = "") -> None:
        """Records a file or folder below the run's folder."""
        row = Artifact(
            job_id=self.job_id,
            kind=kind,
            sha256=sha256,
            created_at=now_ms(),
            path=str(path.relative_to(settings().artifacts)),
            bytes=folder_bytes(path),
        )

        def write(session: Session) -> None:
            session.query(Artifact).where(Artifact.path == row.path).delete()
            session.merge(row)

        self._patiently(write)

    def environment(self, **facts: Any) -> None:
        """Adds facts that are needed to repeat the run: versions, threads, text hashes."""

        def write(session: Session) -> None:
            (job,) = locked(session, Job, [self.job_id])
            job.environment = {**job.environment, **facts}

        self._patiently(write)

    def note_resumption(self) -> None:
        """Records which checkpoint this attempt goes on from, and takes over the figures that an
        earlier one has left beside it, before the database is locked: reading takes time."""
        self._fetch_work()
        self._figures.take_over(self.job_id)
        self.resumed_from = self.checkpoints.newest()

        mine = update(Attempt).where(Attempt.id == self.attempt_id)
        self._patiently(lambda s: s.execute(mine.values(resumed_from=self.resumed_from)))

    def _fetch_work(self) -> None:
        """Gets the checkpoints that an attempt on another machine has left, for as long as a run
        may go on without the database: the store may be away, too."""
        began = time.monotonic()
        while True:
            try:
                return fetch_work(self.run, self.attempt_n, SPOOL)
            except OSError as error:
                if time.monotonic() - began > settings().offline_s:
                    raise
                self.log(f"The artifact store does not answer: {error}")
                time.sleep(STORE_AGAIN_S)

    def open_folder(self) -> None:
        """Holds the folder of the run, says where an attempt after the first one begins, and lets
        the files of the run go to the store of artifacts from now on, if there is one."""
        self._held, before = HeldFolder(self.work), self.attempt_n - 1
        if self.resumed_from:
            self.log(f"Continuing from checkpoint {self.resumed_from}.")
        elif before:
            there = log_file(self.run, before).exists()
            what = "no" if there else f"neither a log of attempt {before} nor a"
            self.log(f"There is {what} checkpoint: starting from the beginning.")
        self._uploads.start()

    def deliver(self) -> None:
        """Returns when what the run has saved is in the store of artifacts. Raises CancelledError:
        somebody has asked the run to stop meanwhile."""
        self._uploads.add_saved(self.folder, but=self.work)
        if not self._uploads.wait(self.should_stop):
            raise CancelledError

    def end_storing(self, has_succeeded: bool) -> None:
        """Gives the store of artifacts a last chance to take what it has not. A machine of a
        cluster then keeps nothing of a run that has succeeded."""
        is_stored = self._uploads.close(LEAVING_S)
        if has_succeeded and is_stored and self._is_elsewhere:
            shutil.rmtree(self.folder, ignore_errors=True)

    def folder_is_gone(self) -> bool:
        """Whether somebody has removed the folder of the run since `open_folder`."""
        return self._held is not None and self._held.is_gone()

    # life ------------------------------------------------------------------------------------

    def start(self) -> None:
        began = select(func.min(Attempt.started_at)).where(Attempt.job_id == self.job_id)
        with reading() as session:
            self._usage = UsageSampler(session.scalar(began) or now_ms(), self.metric)
        self._thread.start()

    def ask_stop(self) -> None:
        """Makes `should_stop` true."""
        self._stop.set()

    def finish(self, outcome: str, **values: Any) -> None:
        """Writes everything that is left and the outcome, and stops beating."""
        self._closed.set()
        self._figures.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self._figures.patiently(partial(self._figures.flush, durable=True))
        job = update(Job).where(Job.id == self.job_id).values(**{"eta_s": None, **values})
        self._patiently(lambda session: session.execute(job), durable=True, outcome=outcome)

    def settle(self) -> None:
        """Brings the buffered figures to a disk before the checkpoint of the work they belong to:
        into the database, or, where that does not take them at once, into a file beside it."""
        self._figures.settle()

    def _patiently(
        self, write: Callable[[Session], Any], *, durable: bool = False, **fence: Any
    ) -> None:
        """Writes in one fenced transaction, waiting for a busy database."""

        def once() -> None:
            with writing(durable=durable) as session:
                self._fence(session, **fence)
                write(session)

        self._figures.patiently(once)

    def _write(self, rows: list[Row], durable: bool) -> None:
        with writing(durable=durable) as session:
            self._fence(session)
            job = update(Job).where(Job.id == self.job_id)
            session.execute(job.values(**self._progress.columns()))
            upsert(session.connection(), rows)

    def _add(self, table: type[Table], **values: Any) -> None:
        self._figures.add((table, {"job_id": self.job_id, **values}))

    def _fence(self, session: Session, **values: Any) -> None:
        """Raises `LeaseLostError` unless this attempt may still write for its job."""
        newest = select(func.max(Attempt.n)).where(Attempt.job_id == self.job_id).scalar_subquery()
        mine = update(Attempt).where(
            Attempt.id == self.attempt_id,
            Attempt.token == self.token,
            Attempt.ended_at.is_(None),
            newest == self.attempt_n,
        )
        if not change(session, mine.values(beat_at=database_ms(session), **values)):
            raise LeaseLostError

    def _beat_forever(self) -> None:
        try:
            self._figures.serve(self._closed.is_set, self._look)
        except LeaseLostError:
            self.log("Another attempt holds this run; this process ends.")
            os._exit(Exit.FENCED)

    def _look(self) -> None:
        """Reads what people want, and samples what the run takes of the machine. Whatever fails, a
        run that does not beat cannot be stopped. One that cannot, and has not stopped by itself, is
        about to be taken over by another machine: it ends before that."""
        if self._is_shared and self._figures.silence_s() > settings().offline_s + OVERDUE_S:
            self.log("The database is away for so long that another machine may take the run over.")
            os._exit(Exit.AWAY)
        with suppress(Exception):
            now = time.monotonic()
            silent = now - self._logged >= max(SILENT_S, EVERY * (now - self._began))
            if silent and (news := self._progress.news()):
                self.log(news)
        with suppress(Exception), reading() as session:
            if self._usage:
                self._usage.sample()
            desired = session.scalar(select(Job.desired).where(Job.id == self.job_id))
            if desired == "kill" and self._is_elsewhere:
                os.killpg(0, signal.SIGKILL)  # a cluster may have no way to
            if desired != "run":
                self._stop.set()


def claim(attempt_id: int) -> JobContext:
    """Takes an attempt for this process; only the first to ask gets it. Raises LeaseLostError: it
    was claimed before, given up, or never was."""
    mine = update(Attempt).where(
        Attempt.id == attempt_id, Attempt.started_at.is_(None), Attempt.ended_at.is_(None)
    )
    with writing(durable=True) as session:
        now = database_ms(session)
        if not change(session, mine.values(started_at=now, beat_at=now)):
            raise LeaseLostError
        attempt = session.get_one(Attempt, attempt_id)
        if attempt.engine_ref is None:  # else it is the engine's, which knew it beforehand
            attempt.engine_ref = reference(os.getpid())
        job = session.get_one(Job, attempt.job_id)
    context = JobContext(attempt, job)
    context.note_resumption()
    return context
