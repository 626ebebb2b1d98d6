"""Singleton processes of a data folder, environments of child processes, and launch requests."""

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
from backend.queue.lifecycle import SUPERVISOR_ACTOR, note
from backend.settings import FOLDER_VARIABLES, FROZEN_VARIABLES, available_threads, settings
from backend.store.json_column import check_intact
from backend.store.states import QUICK_SLOT
from backend.store.tables import Attempt, Job, Slot

EXIT_S = 5.0  # time in which a killed process has to end
START_S = 20.0  # time in which a new process has to acquire the lock
HOST_TOKEN = "SLIMSCOPE_HOST_TOKEN"
SUPERVISOR_VARIABLES = (  # variables that only the supervisor needs
    "SLIMSCOPE_ENGINE",
    "SLIMSCOPE_RAY_ADDRESS",
    "SLIMSCOPE_RAY_TOKEN",
    "SLIMSCOPE_SLURM_ARGS",
    "SLIMSCOPE_WEBHOOK",
)
SUBMISSION_VARIABLES = (  # a job gets their values at its submission, not those of the supervisor
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
)
# variables for other machines: no paths and no secrets
NODE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
OUTPUT_VARIABLES = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # progress bars would fill the log
}
LIBRARY_VARIABLES = {  # settings of C libraries
    # reuse the memory of a freed tensor, rather than return it to the system, which clears it
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",  # threads reuse the memory of other threads, too
    # iterations (a few microseconds) that a waiting OpenMP thread spins before it sleeps; endless
    # spinning takes the core of the thread it waits for if other processes need the cores
    "GOMP_SPINCOUNT": "1000",
}
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
VARIABLES = "variables"  # key of the submission's variables in the environment of a job
QUICK_NICENESS = 10
RUN = (sys.executable, "-m", "jobs.runtime.main")
TOKEN_ADVICE = (
    "tokens are not stored: run `hf auth login` once, or set it where Slimscope is started"
)
CODE = Path(__file__).resolve().parents[2]


class FolderProcess:
    """A process that exists at most once per data folder.

    It is started on demand, ends by itself, and holds a lock while it lives.

    Args:
        name: name of its files in `.slimscope`.
        module: Python module that it runs.
    """

    def __init__(self, name: str, module: str) -> None:
        self.name, self.module = name, module
        # last process and its start time by data folder
        self._started: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}

    def path(self, suffix: str) -> Path:
        """A file of the process: .lock, which it holds while it runs, .pid, .log, …"""
        return settings().root / ".slimscope" / f"{self.name}{suffix}"

    def is_alive(self) -> bool:
        """Return True if a process holds the lock of this data folder."""
        lock = self.try_lock()
        if lock is None:
            return True
        lock.release()
        return False

    def try_lock(self) -> BaseFileLock | None:
        """Acquire the lock without waiting; None if another process holds it.

        The kernel releases the lock when its holder dies."""
        self.path(".lock").parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path(".lock"), timeout=0, mode=0o600)
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock

    def hold(self) -> BaseFileLock | None:
        """Acquire the lock, with retries, as `is_alive` holds it briefly.

        The pid is written to a file, so that another process can end this one."""
        for _ in range(10):
            if (lock := self.try_lock()) is not None:
                holder = {"pid": os.getpid(), "started": psutil.Process().create_time()}
                with suppress(OSError):  # a full disk; only `restart` needs the file
                    self.path(".pid").write_text(json.dumps(holder), "utf-8")
                return lock
            time.sleep(0.1)
        return None

    def wake(self) -> None:
        """Start the process unless one is running or starting.

        A start can take many seconds on a busy machine. If two start at once, one exits."""
        root, now = settings().root, time.monotonic()
        child, start = self._started.get(root, (None, 0.0))
        is_starting = child and child.poll() is None and now - start < START_S
        if is_starting or self.is_alive():
            return
        self._started[root] = (start_module(self.module, self.path(".log")), now)

    def restart(self) -> None:
        """End a hanging process and start another one."""
        # the process has ended, or its file is missing or damaged
        with suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):
            holder = json.loads(self.path(".pid").read_text("utf-8"))
            process = psutil.Process(int(holder["pid"]))
            if process.create_time() == holder["started"]:
                process.kill()
                process.wait(EXIT_S)
        self.wake()

    def call(self) -> None:
        """Notify the process that a request is about to follow."""
        self.path(".called").parent.mkdir(parents=True, exist_ok=True)
        self.path(".called").touch(mode=0o600)

    def is_called(self) -> bool:
        """Return True if `call` was called since the last check."""
        try:
            self.path(".called").unlink()
        except FileNotFoundError:
            return False
        return True


def start_module(module: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a process that runs a module in a new session, with its output appended to a log."""
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
    """The environment of child processes.

    It has the absolute data folder and the threads of a slot, but not the host's token, which only
    the dashboard needs."""
    threads = str(settings().threads or max(1, available_threads() // settings().slots))
    inherited = {name: value for name, value in os.environ.items() if name.upper() != HOST_TOKEN}
    return {
        **LIBRARY_VARIABLES,
        **inherited,
        **settings().for_jobs(),
        "SLIMSCOPE_DATA_DIR": str(settings().root),
        "SLIMSCOPE_ARTIFACTS": settings().artifact_place,
        "SLIMSCOPE_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **OUTPUT_VARIABLES,
    }


def submission_variables() -> dict[str, str | None]:
    """The variables of the submission that a job's row stores; None for variables that are not set.

    Tokens are replaced by fingerprints."""
    values = {name: os.environ.get(name) for name in SUBMISSION_VARIABLES}
    return values | {name: _fingerprint(os.environ.get(name)) for name in TOKENS}


def job_environment(
    frozen: Mapping[str, str], submitted: Mapping[str, str | None]
) -> tuple[dict[str, str], list[str]]:
    """The environment of a job's process on this machine, and the names of missing tokens.

    A token is missing if the job was submitted with it, but this process has none or another one:
    tokens are not stored.

    Args:
        frozen: settings stored with the job.
        submitted: result of `submission_variables`; empty for an imported run.
    """
    environment = {**child_environment(), **_selected(frozen, FROZEN_VARIABLES)}
    for name in SUPERVISOR_VARIABLES:
        environment.pop(name, None)
    missing = []
    for name in (name for name in (*SUBMISSION_VARIABLES, *TOKENS) if name in submitted):
        value = submitted[name]
        if name in TOKENS:
            if _fingerprint(environment.get(name)) != value:
                environment.pop(name, None)  # the token of another user
                missing += [name] if value else []
        elif value is None:
            environment.pop(name, None)
        else:
            environment[name] = str(value)
    return environment, missing


def node_environment(
    frozen: Mapping[str, str], submitted: Mapping[str, str | None]
) -> dict[str, str]:
    """The variables that a job gets on another machine.

    The locations of database, models and texts, and all secrets, come from the environment of that
    machine. Arguments as in `job_environment`."""
    here = settings()
    threads = str(here.threads or 1)
    offline = {name: str(value) for name in NODE_VARIABLES if (value := submitted.get(name))}
    portable = _selected(
        frozen, [name for name in FROZEN_VARIABLES if name not in FOLDER_VARIABLES]
    )
    return {
        **offline,
        **LIBRARY_VARIABLES,
        **OUTPUT_VARIABLES,
        "SLIMSCOPE_JOB_GB": str(here.job_gb),
        "SLIMSCOPE_OFFLINE_S": str(here.offline_s),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **{"SLIMSCOPE_THREADS": threads, **portable},
    }


def _selected(variables: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: str(variables[name]) for name in names if name in variables}


def _fingerprint(token: str | None) -> str | None:
    return hashlib.sha256(token.encode()).hexdigest()[:16] if token else None


def spare_request(job: Job | None) -> LaunchRequest:
    """The request for a spare process.

    Args:
        job: queued job that it will run; None for a job that a user is about to add, which probably
            has the variables of this process.
    """
    job_data = job.environment if job else {}
    check_intact(job_data, "The environment")
    frozen = job_data.get("settings", {})
    submitted = job_data.get(VARIABLES, submission_variables())
    environment, _ = job_environment(frozen, submitted)
    return LaunchRequest(0, (*RUN, "--spare"), environment, log="", folder=str(CODE))


def launch_request(session: Session, attempt: Attempt, job: Job, remote: bool) -> LaunchRequest:
    """The request for an attempt that has just been claimed with its slot.

    Args:
        remote: the process runs on another machine, which has its own environment and writes the
            log itself.
    """
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
        note(session, job.id, f"started without {missing[0]}", SUPERVISOR_ACTOR, TOKEN_ADVICE)
    slot = session.scalars(select(Slot.number).where(Slot.attempt_id == attempt.id)).one()
    return LaunchRequest(
        attempt_id=attempt.id,
        argv=tuple(argv),
        environment=environment,
        log=str(log),
        folder=str(CODE),
        slot=slot,
        nice=QUICK_NICENESS if slot == QUICK_SLOT else 0,
        device=str(job.config.get("device", "")),
        threads=int(job.config.get("threads") or 0),
        token=attempt.token,
    )
