"""Start the supervisor of a data folder if none is running."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from backend.settings import available_threads, settings

START_S = 20.0  # start timeout: seconds a new process has to acquire the lock
HOST_TOKEN = "SLIMSCOPE_HOST_TOKEN"
CARRIED = (  # what a job finds is decided by those of its submission, not of the supervisor
    "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
FINGERPRINT = 16  # hex digits
CODE = Path(__file__).resolve().parents[2]
# data folder -> last process, start time
_started: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}


def lock_path() -> Path:
    """The lock file that a running supervisor holds."""
    return settings().root / ".slimscope" / "supervisor.lock"


def is_alive() -> bool:
    """Whether a supervisor holds the lock of this data folder."""
    lock = try_lock()
    if lock is None:
        return True
    lock.release()
    return False


def try_lock() -> BaseFileLock | None:
    """Acquire the lock without waiting; None if another process holds it. The kernel releases it
    when the holder dies."""
    lock_path().parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path(), timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def wake_supervisor() -> None:
    """Start a supervisor unless one is running or still starting, which can take many seconds on a
    busy machine. If two start at the same time, one exits."""
    root, now = settings().root, time.monotonic()
    ours, since = _started.get(root, (None, 0.0))
    if is_alive() or (ours and ours.poll() is None and now - since < START_S):
        return
    with (root / ".slimscope" / "supervisor.log").open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "backend.queue.supervisor"],
            cwd=CODE,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _started[root] = (child, now)


def child_environment() -> dict[str, str]:
    """The environment of child processes: absolute data folder, threads limited per slot, and not
    the host's token, which only the dashboard needs."""
    threads = str(settings().threads or max(1, available_threads() // settings().slots))
    inherited = {name: value for name, value in os.environ.items() if name.upper() != HOST_TOKEN}
    return {
        **inherited,
        **settings().for_jobs(),
        "SLIMSCOPE_DATA_DIR": str(settings().root),
        "SLIMSCOPE_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",  # progress bars would fill the log
    }


def submission_variables() -> dict[str, str | None]:
    """What a job's row holds of the environment it was submitted in: values of the variables that
    concern it, None for those that are not set. Of a token only a fingerprint."""
    values = {name: os.environ.get(name) for name in CARRIED}
    return values | {name: _fingerprint(os.environ.get(name)) for name in TOKENS}


def job_environment(
    frozen: Mapping[str, str], submitted: Mapping[str, str | None]
) -> tuple[dict[str, str], list[str]]:
    """The environment of a job's process.

    Args:
        frozen: its settings; submitted: see `submission_variables`; empty for an old job.

    Returns:
        The variables, and the names of tokens it was submitted with and cannot be given: they are
        not stored, and this process has none or another.
    """
    environment = {**child_environment(), **frozen}
    missing = []
    for name, value in submitted.items():
        if name in TOKENS:
            if _fingerprint(environment.get(name)) != value:
                environment.pop(name, None)  # somebody else's
                missing += [name] if value else []
        elif value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    return environment, missing


def _fingerprint(token: str | None) -> str | None:
    return hashlib.sha256(token.encode()).hexdigest()[:FINGERPRINT] if token else None
