"""The processes of which a data folder has one, the environment of what they start, and the request
that an engine gets."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import BaseFileLock, FileLock, Timeout
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.queue.artifacts import log_file
from backend.queue.engines.base import LaunchRequest
from backend.queue.lifecycle import ME, note
from backend.settings import FOLDER_VARIABLES, FROZEN_VARIABLES, available_threads, settings
from backend.store.json_column import check_intact
from backend.store.states import QUICK_SLOT
from backend.store.tables import Attempt, Job, Slot

EXIT_S = 5.0  # until a process that was killed has ended
START_S = 20.0  # start timeout: seconds a new process has to acquire the lock
HOST_TOKEN = "SLIMSCOPE_HOST_TOKEN"
FOR_SUPERVISOR = (
    "SLIMSCOPE_ENGINE",
    "SLIMSCOPE_RAY_ADDRESS",
    "SLIMSCOPE_RAY_TOKEN",
    "SLIMSCOPE_SLURM_ARGS",
    "SLIMSCOPE_WEBHOOK",
)
CARRIED = (  # what a job finds is decided by those of its submission, not of the supervisor
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
)
NODE_TAKES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")  # no path, no secret
QUIET = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # progress bars would fill the log
}
LIBRARIES = {  # of C
    # a tensor's memory serves the next one; the system would clear its pages
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",  # what a thread frees serves the other threads, too
    # looks of an OpenMP thread at what it waits for, before it sleeps, a few microseconds; without
    # end, it would take the core of the one it waits for where others need the cores, too
    "GOMP_SPINCOUNT": "1000",
}
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
VARIABLES = "variables"  # of the submission, in the environment of a job
NICE = 10  # of a job beside the slots
RUN = (sys.executable, "-m", "jobs.runtime.main")
NO_TOKEN = "tokens are not stored: run `hf auth login` once, or set it where Slimscope is started"
CODE = Path(__file__).resolve().parents[2]


class FolderProcess:
    """A process of which a data folder has one: started when it is needed, it ends by itself, and
    holds a lock while it lives. `name`: of its files in `.slimscope`."""

    def __init__(self, name: str, module: str) -> None:
        self.name, self.module = name, module
        # data folder -> last process, start time
        self._started: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}

    def lock_path(self) -> Path:
        """The lock file that the running process holds."""
        return settings().root / ".slimscope" / f"{self.name}.lock"

    def is_alive(self) -> bool:
        """Whether a process holds the lock of this data folder."""
        lock = self.try_lock()
        if lock is None:
            return True
        lock.release()
        return False

    def try_lock(self) -> BaseFileLock | None:
        """Acquire the lock without waiting; None if another process holds it. The kernel releases
        it when the holder dies."""
        self.lock_path().parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_path(), timeout=0, mode=0o600)
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock

    def hold(self) -> BaseFileLock | None:
        """Acquire the lock, with retries: `is_alive` checks hold it briefly. Leaves the number of
        this process, so that others can end it."""
        for _ in range(10):
            if (lock := self.try_lock()) is not None:
                mine = {"pid": os.getpid(), "started": psutil.Process().create_time()}
                self._pid_path().write_text(json.dumps(mine), "utf-8")
                return lock
            time.sleep(0.1)
        return None

    def wake(self) -> None:
        """Start the process unless one is running or still starting, which can take many seconds
        on a busy machine. If two start at once, one exits."""
        root, now = settings().root, time.monotonic()
        ours, since = self._started.get(root, (None, 0.0))
        if self.is_alive() or (ours and ours.poll() is None and now - since < START_S):
            return
        self._started[root] = (started(self.module, self.lock_path().with_suffix(".log")), now)

    def restart(self) -> None:
        """End the process, which hangs, and start another."""
        with suppress(OSError, ValueError, KeyError, psutil.Error):  # it has ended
            holder = json.loads(self._pid_path().read_text("utf-8"))
            process = psutil.Process(int(holder["pid"]))
            if process.create_time() == holder["started"]:
                process.kill()
                process.wait(EXIT_S)
        self.wake()

    def _pid_path(self) -> Path:
        return self.lock_path().with_suffix(".pid")

    def call(self) -> None:
        """Let the process know that something is about to be asked of it."""
        self._call_path().parent.mkdir(parents=True, exist_ok=True)
        self._call_path().touch(mode=0o600)

    def is_called(self) -> bool:
        """Whether `call` was called since this was asked last."""
        try:
            self._call_path().unlink()
        except FileNotFoundError:
            return False
        return True

    def _call_path(self) -> Path:
        return self.lock_path().with_suffix(".called")


def started(module: str, log: Path) -> subprocess.Popen[bytes]:
    """A new process that runs a module, in a session of its own; its output is added to a log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=CODE,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


SUPERVISOR = FolderProcess("supervisor", "backend.queue.supervisor")
SERVING = FolderProcess("serving", "jobs.serving.main")


def child_environment() -> dict[str, str]:
    """The environment of child processes: absolute data folder, threads limited per slot, and not
    the host's token, which only the dashboard needs."""
    threads = str(settings().threads or max(1, available_threads() // settings().slots))
    inherited = {name: value for name, value in os.environ.items() if name.upper() != HOST_TOKEN}
    return {
        **LIBRARIES,
        **inherited,
        **settings().for_jobs(),
        "SLIMSCOPE_DATA_DIR": str(settings().root),
        "SLIMSCOPE_ARTIFACTS": settings().artifact_place,
        "SLIMSCOPE_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **QUIET,
    }


def submission_variables() -> dict[str, str | None]:
    """What a job's row holds of the environment it was submitted in: values of the variables that
    concern it, None for those that are not set. Of a token only a fingerprint."""
    values = {name: os.environ.get(name) for name in CARRIED}
    return values | {name: _fingerprint(os.environ.get(name)) for name in TOKENS}


def job_environment(
    frozen: Mapping[str, str], submitted: Mapping[str, str | None]
) -> tuple[dict[str, str], list[str]]:
    """The environment of a job's process: that of this machine, with those of the stored variables
    that a run may be told; and the names of tokens it was submitted with and cannot be given: they
    are not stored, and this process has none or another. `frozen`: its settings; submitted: see
    `submission_variables`; empty for an imported run."""
    environment = {**child_environment(), **_texts(frozen, FROZEN_VARIABLES)}
    for name in FOR_SUPERVISOR:  # a run starts none
        environment.pop(name, None)
    missing = []
    for name in (name for name in (*CARRIED, *TOKENS) if name in submitted):
        value = submitted[name]
        if name in TOKENS:
            if _fingerprint(environment.get(name)) != value:
                environment.pop(name, None)  # somebody else's
                missing += [name] if value else []
        elif value is None:
            environment.pop(name, None)
        else:
            environment[name] = str(value)
    return environment, missing


def node_environment(
    frozen: Mapping[str, str], submitted: Mapping[str, str | None]
) -> dict[str, str]:
    """The variables of a job on another machine, and no more: its own environment says where the
    database, models and texts are there, and holds its secrets. See `job_environment`."""
    here = settings()
    threads = str(here.threads or 1)
    asked = {name: str(value) for name in NODE_TAKES if (value := submitted.get(name))}
    meant = _texts(frozen, [name for name in FROZEN_VARIABLES if name not in FOLDER_VARIABLES])
    return {
        **asked,
        **LIBRARIES,
        **QUIET,
        "SLIMSCOPE_JOB_GB": str(here.job_gb),
        "SLIMSCOPE_OFFLINE_S": str(here.offline_s),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **{"SLIMSCOPE_THREADS": threads, **meant},
    }


def _texts(stored: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Those of the stored variables that have one of these names."""
    return {name: str(stored[name]) for name in names if name in stored}


def _fingerprint(token: str | None) -> str | None:
    return hashlib.sha256(token.encode()).hexdigest()[:16] if token else None


def spare_request(job: Job | None) -> LaunchRequest:
    """The request of a process for a job whose attempt is still to be claimed, or for one that is
    still to be added, as by who has woken this process."""
    stored = job.environment if job else {}
    check_intact(stored, "The environment")
    frozen, submitted = stored.get("settings", {}), stored.get(VARIABLES, submission_variables())
    environment, _ = job_environment(frozen, submitted)
    return LaunchRequest(0, (*RUN, "--spare"), environment, log="", folder=str(CODE))


def launch_request(session: Session, attempt: Attempt, job: Job, remote: bool) -> LaunchRequest:
    """The request of an attempt that has just been claimed, with its slot. `remote`: it runs on a
    machine that gets nothing of the environment of this one, and writes its log by itself."""
    check_intact(job.config)
    check_intact(job.environment, "The environment")
    frozen, submitted = (job.environment.get(part, {}) for part in ("settings", VARIABLES))
    argv = [*RUN, "--attempt", str(attempt.id)]
    log, missing = log_file(job.run, attempt.n), list[str]()
    if remote:
        environment = node_environment(frozen, submitted)
        argv += ["--log", str(log.relative_to(settings().artifacts))]
    else:
        environment, missing = job_environment(frozen, submitted)
    if missing:
        note(session, job.id, f"started without {missing[0]}", ME, NO_TOKEN)
    slot = session.scalars(select(Slot.number).where(Slot.attempt_id == attempt.id)).one()
    return LaunchRequest(
        attempt_id=attempt.id,
        argv=tuple(argv),
        environment=environment,
        log=str(log),
        folder=str(CODE),
        slot=slot,
        nice=NICE if slot == QUICK_SLOT else 0,
        device=str(job.config.get("device", "")),
        threads=int(job.config.get("threads") or 0),
        token=attempt.token,
    )
