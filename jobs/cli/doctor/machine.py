"""Checks of the machine: memory, threads, GPU, clock, models and texts."""

from datetime import UTC, datetime

import psutil

from backend.decoding.native.compiler import CompilerError, instructions
from backend.models.sources.cache import damaged_folders
from backend.models.sources.catalogue import entries
from backend.queue.engines.local import installed_gpus
from backend.settings import available_threads, settings, unknown_variables
from backend.store import queries
from backend.text.corpora import corpora
from jobs.cli.doctor.check import HealthCheck, check

NEEDED_MEMORY = 1e9
TOLERANCE_S = 60.0
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)  # no clock that is right shows an earlier one


def variables() -> HealthCheck:
    """Whether every variable that is named as a setting is one."""
    unknown = unknown_variables()
    text = f"without effect: {', '.join(unknown)}" if unknown else "all are known"
    return check("settings", not unknown, text, "Unset them: docs/operations.md lists all.")


def memory() -> HealthCheck:
    found = psutil.virtual_memory()
    text = f"{found.available / 1e9:.1f} of {found.total / 1e9:.1f} GB free"
    return check("memory", found.available > NEEDED_MEMORY, text, "Close other programs.")


def threads() -> HealthCheck:
    """Threads of all jobs that run at the same time, against the cores."""
    import torch  # here: it takes seconds that no other command needs

    cores, here = available_threads(), settings()
    wanted = here.threads * here.slots if here.engine == "local" else 0
    text = f"{cores} cores available, torch uses {torch.get_num_threads()} threads"
    if wanted > cores:
        text += f"; {here.slots} x {here.threads} threads are set, which wait for each other"
    fix = f"Set SLIMSCOPE_THREADS={max(1, cores // here.slots)}, or leave it unset."
    return check("threads", wanted <= cores, text, fix)


def device() -> HealthCheck:
    """Whether torch can use the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        return HealthCheck("device", True, f"{torch.cuda.get_device_name()} ({torch.__version__})")
    gpus = len(installed_gpus())
    text = f"cpu (torch {torch.__version__}); {gpus or 'no'} GPU{'s' * (gpus > 1)} installed"
    fix = "Install torch with CUDA (pytorch.org/get-started), and a driver that fits it."
    return check("device", not gpus, text, fix)


def native_decoder() -> HealthCheck:
    """Whether models decode in compiled code on this CPU; builds it if it has not been built."""
    try:
        return HealthCheck("decoder", True, f"native ({instructions()})")
    except CompilerError as error:
        return HealthCheck("decoder", True, f"PyTorch, slower: {error.why}", error.do)


def clock() -> HealthCheck:
    """The time of day against the newest event: queue, retention and copies rely on it."""
    now = datetime.now(UTC)
    ahead = queries.newest_event_at() / 1000 - now.timestamp()
    text = f"{now:%Y-%m-%d %H:%M} UTC"
    if ahead > TOLERANCE_S:
        text += f"; the newest event is {ahead:,.0f} s later, so the clock was set back"
    ok = ahead <= TOLERANCE_S and now > FIRST_DAY
    return check("clock", ok, text, "timedatectl set-ntp true")


def models() -> HealthCheck:
    ready = [entry.name for entry in entries() if entry.ready]
    fix = "Install Slimscope again: the toy model comes with it."
    return check("models", "toy" in ready, ", ".join(ready) or "none", fix)


def cached_models() -> HealthCheck:
    """Sizes of the files in the cache, against their manifests."""
    damaged = damaged_folders()
    text = ", ".join(map(str, damaged)) or "no file has changed"
    fix = "Delete what is named; it is fetched again: rm -r FOLDER"
    return check("cache", not damaged, text, fix)


def texts() -> HealthCheck:
    ready = [corpus.name for corpus in corpora() if corpus.ready]
    return check("texts", bool(ready), ", ".join(ready) or "none", "slimscope setup")
