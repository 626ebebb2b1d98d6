"""The `Reporter` of a running job, backed by the database. Every write is fenced: it only succeeds
while this attempt holds the newest token of the job. Otherwise the process exits without
writing."""

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
from jobs.runtime.progress import SAMPLE_SHARE, Phases, Progress, UsageSampler
from jobs.runtime.row_buffer import (
    LeaseLostError,
    Row,
    RowBuffer,
    RowSpool,
    profile_row,
    tensor_row,
    upsert,
)
from jobs.runtime.uploads import Uploads

SPOOL = ".figures.jsonl"  # in the checkpoint folder
STORE_RETRY_S = 10.0
LOG_INTERVAL_S = 10.0  # between progress lines in the log; grows with the length of the run
STOP_TIMEOUT_S = 20.0  # for a run to stop by itself before another machine may take it over
FINAL_UPLOAD_S = 20.0  # shorter than the silence after which a run counts as lost


class JobContext:
    """One attempt's handle on its job, created by `claim` and closed by `finish`. A heartbeat
    thread writes progress and buffered metrics once a second and reads cancellation requests."""

    def __init__(self, attempt: Attempt, job: Job) -> None:
        self.job_id, self.attempt_id, self.token = job.id, attempt.id, attempt.token
        self.run, self.attempt_n, self.kind, self.config = job.run, attempt.n, job.kind, job.config
        self.folder: Path = run_folder(job.run)
        self.work: Path = work_folder(job.run)
        log = log_file(job.run, attempt.n)
        self._uploads = Uploads(store(), log, self.work / SPOOL, lambda text: self.log(text))
        self.checkpoints = Checkpoints(self.work, self.settle, attempt.n, self._uploads.add)
        self.resumed_from: str | None = None
        self._is_remote = attempt.engine != LocalEngine.name  # not the dashboard's machine
        names_host = "host" in (attempt.engine_ref or {})
        self._is_shared = self._is_remote or names_host  # other machines may take over
        self._folder_handle: HeldFolder | None = None
        self._rows = RowBuffer(
            lambda rows, durable: self._write(rows, durable),
            RowSpool(self.work / SPOOL),
            lambda text: self.log(text),
        )
        self._stop = threading.Event()
        self._closed = threading.Event()
        self._progress = Progress(job.environment.get(ESTIMATED_SECONDS))
        self._usage: UsageSampler | None = None
        self._began = self._last_log = time.monotonic()
        self._thread = threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True)

    @property
    def plan(self) -> dict[str, Any]:
        """The plan stored at submission: the operations on each layer. Raises ConfigError if it is
        missing or damaged."""
        plan = queries.plan(self.job_id)
        check_intact(plan, "The plan")
        if plan is None:
            raise ConfigError(
                "This run has no plan.", "It was not submitted normally.", "Submit it again."
            )
        return plan

    # Reporter -------------------------------------------------------------------------------

    def progress(
        self, done: float, total: float, stage: str, phase_end: float | None = None
    ) -> None:
        """Report progress. `phase_end`: end of the current phase, in units of `total`."""
        is_first = not self._progress.is_under_way  # users see little else yet
        self._progress.report(done, total, stage, total if phase_end is None else phase_end)
        if is_first:
            self._rows.request_flush()

    def metric(self, key: MetricKey, value: float, step: int) -> None:
        if not math.isfinite(value):
            self.log(f"{key} is {value} at {key.axis} {step}. The point is not drawn.")
            return
        self._add(MetricPoint, **asdict(key), step=step, at=now_ms(), value=float(value))

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        self._rows.add(tensor_row(self.job_id, snapshot))

    def profile(self, profile: TensorProfile) -> None:
        self._rows.add(profile_row(self.job_id, profile))

    def log(self, text: str) -> None:
        self._last_log = time.monotonic()
        with suppress(OSError):  # a full disk must not end the run
            line = f"{time.strftime('%H:%M:%S')}  {text}\n"
            # a single write, since several threads log
            print(line, end="", flush=True)

    def should_stop(self) -> bool:
        if not self._stop.is_set() and self._rows.is_away_too_long():
            self.log(
                "The database has been unavailable for too long. The run stops until it is back."
            )
            self._stop.set()
        return self._stop.is_set()

    # further records ------------------------------------------------------------------------

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
        """Record a result of the run. A later value of the same metric replaces it. Raises
        ComputeError if the value is not finite."""
        if not math.isfinite(value):
            raise ComputeError(
                f"{metric} of {stage} is {value}.",
                "The computation overflowed or divided by zero.",
                "Choose float32 as forward precision, or another text.",
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
        """Return the phases of the run, weighted by expected time. The work is stored for later
        estimates."""
        expected = estimates.estimate(self.kind, self.config, work)
        timed = sum(phase.amount for phase in work if phase.unit == "seconds")
        products = sum(phase.amount for phase in work if phase.unit in ("float32", "bfloat16"))
        self.outcome(flops=2 * products, timed_seconds=timed)
        rates, steps = estimates.rates_here().model_dump(), estimates.by_step(work)
        record = {"kernels": kernel_version(), "rates": rates, "steps": steps}
        self.record_environment(**{estimates.WORK: record})
        return Phases(self, expected.phases)

    def outcome(self, **columns: str | float) -> None:
        """Record columns of the run, such as `kept_stage`."""
        job = update(Job).where(Job.id == self.job_id).values(**columns)
        self._write_fenced(lambda session: session.execute(job))

    def keep(self, kept: KeptStage) -> None:
        """Record the kept stage and the reason."""
        self.outcome(kept_stage=kept.stage)
        self.record_environment(**{KEPT_REASON: kept.reason})

    def step_time(self, step: str, seconds: float) -> None:
        """Record the duration of one step, summed over attempts."""
        self._add(StepTime, step=step, seconds=seconds)
        self.settle()

    def decoder(self, name: str, report: dict[str, Any]) -> None:
        self._add(DecoderRow, decoder=name, report=report)
        self.settle()

    def has_result(self, stage: str, metric: MetricKey) -> bool:
        """Return True if the result has already been recorded, possibly by an earlier attempt."""
        if self._rows.has_result(stage, metric):
            return True

        def is_stored() -> bool:
            with reading() as session:
                key = (self.job_id, stage, metric.family, metric.series)
                return session.get(Result, key) is not None

        return self._rows.retry(is_stored)

    def artifact(self, path: Path, kind: str, sha256: str = "") -> None:
        """Record a file or folder below the run's folder."""
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

        self._write_fenced(write)

    def record_environment(self, **facts: Any) -> None:
        """Record facts that are needed to reproduce the run: versions, threads, text hashes."""

        def write(session: Session) -> None:
            (job,) = locked(session, Job, [self.job_id])
            job.environment = {**job.environment, **facts}

        self._write_fenced(write)

    def note_resumption(self) -> None:
        """Record the checkpoint that this attempt resumes from, and take over the rows that an
        earlier attempt spooled next to it. Reads before locking the database, since reading takes
        time."""
        self._fetch_work()
        self._rows.take_over(self.job_id)
        self.resumed_from = self.checkpoints.newest()

        attempt = update(Attempt).where(Attempt.id == self.attempt_id)
        self._write_fenced(lambda s: s.execute(attempt.values(resumed_from=self.resumed_from)))

    def _fetch_work(self) -> None:
        """Download checkpoints of an attempt on another machine. Retries for
        `settings().offline_s`, since the store may be unavailable."""
        began = time.monotonic()
        while True:
            try:
                return fetch_work(self.run, self.attempt_n, SPOOL)
            except OSError as error:
                if time.monotonic() - began > settings().offline_s:
                    raise
                self.log(f"The artifact store is unavailable: {error}")
                time.sleep(STORE_RETRY_S)

    def open_folder(self) -> None:
        """Open the run's folder, log where a later attempt continues, and start uploads to the
        artifact store, if there is one."""
        self._folder_handle, previous = HeldFolder(self.work), self.attempt_n - 1
        if self.resumed_from:
            self.log(f"Continuing from checkpoint {self.resumed_from}.")
        elif previous:
            has_log = log_file(self.run, previous).exists()
            missing = "no" if has_log else f"neither a log of attempt {previous} nor a"
            self.log(f"There is {missing} checkpoint. Starting from the beginning.")
        self._uploads.start()

    def deliver(self) -> None:
        """Wait until the saved results are in the artifact store. Raises CancelledError if
        cancellation is requested meanwhile."""
        self._uploads.add_saved(self.folder, but=self.work)
        if not self._uploads.wait(self.should_stop):
            raise CancelledError

    def end_storing(self, has_succeeded: bool) -> None:
        """Upload the remaining files within `FINAL_UPLOAD_S`. A cluster machine then deletes its
        copy of a successful run."""
        is_stored = self._uploads.close(FINAL_UPLOAD_S)
        if has_succeeded and is_stored and self._is_remote:
            shutil.rmtree(self.folder, ignore_errors=True)

    def folder_is_gone(self) -> bool:
        """Return True if the run's folder was removed after `open_folder`."""
        return self._folder_handle is not None and self._folder_handle.is_gone()

    # lifecycle ------------------------------------------------------------------------------------

    def start(self) -> None:
        began = select(func.min(Attempt.started_at)).where(Attempt.job_id == self.job_id)
        with reading() as session:
            self._usage = UsageSampler(session.scalar(began) or now_ms(), self.metric)
        self._thread.start()

    def ask_stop(self) -> None:
        """Request a stop: `should_stop` returns True from now on."""
        self._stop.set()

    def finish(self, outcome: str, **values: Any) -> None:
        """Write the remaining rows and the outcome, and stop the heartbeat."""
        self._closed.set()
        self._rows.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self._rows.retry(partial(self._rows.flush, durable=True))
        job = update(Job).where(Job.id == self.job_id).values(**{"eta_s": None, **values})
        self._write_fenced(lambda session: session.execute(job), durable=True, outcome=outcome)

    def settle(self) -> None:
        """Make the buffered rows durable before the checkpoint of their work is committed: in the
        database, or in a file next to the checkpoint if the database is away."""
        self._rows.settle()

    def _write_fenced(
        self, write: Callable[[Session], Any], *, durable: bool = False, **fence: Any
    ) -> None:
        """Write in one fenced transaction, waiting for a busy database."""

        def once() -> None:
            with writing(durable=durable) as session:
                self._fence(session, **fence)
                write(session)

        self._rows.retry(once)

    def _write(self, rows: list[Row], durable: bool) -> None:
        with writing(durable=durable) as session:
            self._fence(session)
            job = update(Job).where(Job.id == self.job_id)
            session.execute(job.values(**self._progress.columns()))
            upsert(session.connection(), rows)

    def _add(self, table: type[Table], **values: Any) -> None:
        self._rows.add((table, {"job_id": self.job_id, **values}))

    def _fence(self, session: Session, **values: Any) -> None:
        """Raise `LeaseLostError` unless this attempt may still write for its job."""
        newest = select(func.max(Attempt.n)).where(Attempt.job_id == self.job_id).scalar_subquery()
        attempt = update(Attempt).where(
            Attempt.id == self.attempt_id,
            Attempt.token == self.token,
            Attempt.ended_at.is_(None),
            newest == self.attempt_n,
        )
        if not change(session, attempt.values(beat_at=database_ms(session), **values)):
            raise LeaseLostError

    def _beat_forever(self) -> None:
        try:
            self._rows.serve(self._closed.is_set, self._after_write)
        except LeaseLostError:
            self.log("Another attempt has taken over this run. This process exits.")
            os._exit(Exit.FENCED)

    def _after_write(self) -> None:
        """Read cancellation requests, log progress and sample resource use.

        Errors are suppressed: a run without a heartbeat could not be stopped. A run that cannot
        reach the database and has not stopped by itself exits before another machine takes it over.
        """
        if self._is_shared and self._rows.silence_s() > settings().offline_s + STOP_TIMEOUT_S:
            self.log(
                "The database has been away so long that another machine may take over the run."
            )
            os._exit(Exit.AWAY)
        with suppress(Exception):
            now = time.monotonic()
            is_due = now - self._last_log >= max(LOG_INTERVAL_S, SAMPLE_SHARE * (now - self._began))
            if is_due and (line := self._progress.log_line()):
                self.log(line)
        with suppress(Exception), reading() as session:
            if self._usage:
                self._usage.sample()
            desired = session.scalar(select(Job.desired).where(Job.id == self.job_id))
            if desired == "kill" and self._is_remote:
                os.killpg(0, signal.SIGKILL)  # a cluster may be unable to
            if desired != "run":
                self._stop.set()


def claim(attempt_id: int) -> JobContext:
    """Claim an attempt for this process. Raises LeaseLostError if it was claimed before, given up,
    or never existed."""
    unclaimed = update(Attempt).where(
        Attempt.id == attempt_id, Attempt.started_at.is_(None), Attempt.ended_at.is_(None)
    )
    with writing(durable=True) as session:
        now = database_ms(session)
        if not change(session, unclaimed.values(started_at=now, beat_at=now)):
            raise LeaseLostError
        attempt = session.get_one(Attempt, attempt_id)
        if attempt.engine_ref is None:  # otherwise the engine has already set it
            attempt.engine_ref = reference(os.getpid())
        job = session.get_one(Job, attempt.job_id)
    context = JobContext(attempt, job)
    context.note_resumption()
    return context
