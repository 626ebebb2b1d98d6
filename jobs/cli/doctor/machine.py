"""Checks of the machine (memory, threads, GPU, clock, models and texts) and of the data folder
(disk, permissions, database, copies, leftovers and queue)."""

import shutil
import sqlite3
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from backend.compiler import CompilerError
from backend.kernels.library import described, kernels
from backend.kernels.speeds import reading_speeds
from backend.models.sources.cache import damaged_folders
from backend.models.sources.catalog import entries
from backend.printable import readable_bytes
from backend.queue import scheduling
from backend.queue.engines.local import installed_gpus
from backend.queue.launcher import SUPERVISOR
from backend.queue.removal import orphaned_folders
from backend.settings import available_threads, settings, unknown_variables
from backend.store import queries
from backend.store.copies import (
    check_integrity,
    daily_copies,
    database_files,
    has_file,
    repair_advice,
)
from backend.store.dialects import dialect_of
from backend.store.migrate import current_revision
from backend.store.session import database_ms, engine_for, now_ms, reading
from backend.text.corpora import corpora
from jobs.wording import count

TOLERANCE_S = 60.0
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)  # no clock that is right shows an earlier one
SAFE_SQLITE = (3, 51, 3)  # earlier ones may corrupt a log that two connections check-point
OTHERS = stat.S_IRWXG | stat.S_IRWXO
SHOWN = 3  # names in one finding


@dataclass(frozen=True)
class HealthCheck:
    """One thing that was looked at. `fix`: what to do about it, a command or a setting; "" if there
    is nothing to do."""

    name: str
    ok: bool
    text: str
    fix: str = ""


def check(name: str, ok: bool, text: str, fix: str) -> HealthCheck:
    """A finding whose fix is shown only where something is wrong."""
    return HealthCheck(name, ok, text, "" if ok else fix)


def variables() -> HealthCheck:
    """Whether every variable that is named as a setting is one."""
    unknown = unknown_variables()
    text = f"without effect: {', '.join(unknown)}" if unknown else "all are known"
    return check("settings", not unknown, text, "Unset them: docs/operations.md lists all.")


def memory() -> HealthCheck:
    found = psutil.virtual_memory()
    text = f"{found.available / 1e9:.1f} of {found.total / 1e9:.1f} GB free"
    return check("memory", found.available > 1e9, text, "Close other programs.")


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
    """Instructions in which models decode on this CPU; builds the kernels if they have not been."""
    try:
        speeds, name = reading_speeds(), kernels().name
        compared = " and ".join(speeds.compared(x)[1] for x in ("float32", "bfloat16"))
        return HealthCheck("decoder", True, f"native, {described(name)}; of texts, {compared}")
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


def data_folder() -> HealthCheck:
    text = f"{settings().root}, tables at {current_revision()}"
    return HealthCheck("data folder", True, text)


def privacy() -> HealthCheck:
    """Of a shared dashboard, other users of the machine may not read what runs have stored."""
    here = settings()
    if not here.shared:
        return HealthCheck("privacy", True, "not shared: permissions are those of your user")
    paths = (here.root, *database_files())
    open_paths = [path for path in paths if path.stat().st_mode & OTHERS]
    text = f"other users can read {_some(open_paths)}" if open_paths else "private to your user"
    fix = f"chmod -R go= '{here.root}'"
    return check("privacy", not open_paths, text, fix)


def _some(paths: list[Path]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(str, paths[:SHOWN])) + more


def disk() -> HealthCheck:
    free = shutil.disk_usage(settings().root).free
    text = f"{free / 1e9:.1f} GB free; a run may need 4 GB"
    return check("disk", free > 4e9, text, "slimscope disk shows what can be freed.")


def database_version() -> HealthCheck:
    """Which database it is; of a server, whether its clock agrees with that of this machine, by
    which figures are dated."""
    engine = engine_for(settings().url)
    dialect = dialect_of(engine)
    text = dialect.version(engine)
    if dialect.one_machine:
        known = sqlite3.sqlite_version_info >= SAFE_SQLITE
        advice = "" if known else "; only the supervisor check-points, which avoids a known bug"
        return HealthCheck(dialect.title, True, f"{text}{advice}")
    with reading() as session:
        off = abs(database_ms(session) - now_ms()) / 1000
    text = f"{text}; its clock differs by {off:,.1f} s"
    return check(dialect.title, off < 2.0, text, "timedatectl set-ntp true")


def integrity() -> HealthCheck:
    result = check_integrity()
    if result is None:
        engine = engine_for(settings().url)
        dialect = dialect_of(engine)
        size = readable_bytes(dialect.bytes(engine))
        return HealthCheck("database", True, f"{size}, on a server. {dialect.backup_advice}")
    text = "; ".join(result.problems[:SHOWN]) or "intact"
    return check("database", not result.problems, text, repair_advice())


def copies() -> HealthCheck:
    if not has_file():
        return HealthCheck("daily copies", True, "none of a server")
    found, keep = daily_copies(), settings().backups
    newest = f"{len(found)}, the newest {found[0].name}" if found else "none yet"
    return HealthCheck("daily copies", True, newest if keep else "off (SLIMSCOPE_BACKUPS=0)")


def orphans() -> HealthCheck:
    """Artifact folders without a run."""
    found = orphaned_folders()
    text = f"no run knows {_some(found)}" if found else "every artifact folder has its run"
    fix = "Delete them if nothing in them is needed: rm -r FOLDER"
    return check("artifacts", not found, text, fix)


def supervisor() -> HealthCheck:
    """A supervisor that sleeps although a run waits or works, or that hangs and keeps its lock."""
    alive, status = SUPERVISOR.is_alive(), scheduling.status()
    waiting = len(status.live) + len(status.queued)
    if alive and not status.supervisor_alive:
        fix = f"End it; the next starts by itself: fuser -k '{SUPERVISOR.lock_path()}'"
        return HealthCheck("supervisor", False, "it holds its lock, but does not work", fix)
    if waiting and not alive and not status.supervisor_alive:
        text = f"asleep; waiting for it: {count(waiting)}"
        return HealthCheck("supervisor", False, text, "Open the dashboard, which wakes it.")
    return HealthCheck(
        "supervisor", True, "alive" if alive else "asleep; wakes when a run is added"
    )
