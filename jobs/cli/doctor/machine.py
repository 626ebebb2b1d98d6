"""Checks of the machine (memory, threads, GPU, clock, models, texts) and of the data folder (disk,
permissions, database, copies, orphaned folders, queue)."""

import shutil
import sqlite3
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from pkgutil import resolve_name

import psutil

from backend.compiler import CompilerError
from backend.kernels.library import described, kernels
from backend.models import cards
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

TOLERANCE_S = 60.0
EARLIEST_TIME = datetime(2026, 1, 1, tzinfo=UTC)  # earlier times mean a wrong clock
SAFE_SQLITE = (3, 51, 3)  # older versions may corrupt a log checkpointed by two connections
OTHER_USERS = stat.S_IRWXG | stat.S_IRWXO
MAX_NAMES = 3  # names listed in a message
CHOICES = (  # functions of modules that import torch
    "backend.models.blocks:precision_choice",
    "backend.evaluation.native_text:reading_choice",
    "backend.linalg.gram:gram_choice",
    "backend.pruning.redense:descent_choice",
)


@dataclass(frozen=True)
class HealthCheck:
    """Result of one check.

    Attributes:
        name: subject of the check.
        ok: True if the check passed.
        text: details.
        fix: command or setting that solves the problem; "" if there is nothing to do.
    """

    name: str
    ok: bool
    text: str
    fix: str = ""


def check(name: str, ok: bool, text: str, fix: str) -> HealthCheck:
    """Return a result that includes the fix only if the check failed."""
    return HealthCheck(name, ok, text, "" if ok else fix)


def variables() -> HealthCheck:
    """Check that every SLIMSCOPE_ variable is a setting."""
    unknown = unknown_variables()
    text = f"unknown: {', '.join(unknown)}" if unknown else "all are known"
    return check(
        "settings", not unknown, text, "Unset them. docs/operations.md lists all settings."
    )


def memory() -> HealthCheck:
    """Check that at least 1 GB of memory is free."""
    virtual_memory = psutil.virtual_memory()
    text = f"{virtual_memory.available / 1e9:.1f} of {virtual_memory.total / 1e9:.1f} GB free"
    return check("memory", virtual_memory.available > 1e9, text, "Close other programs.")


def threads() -> HealthCheck:
    """Check that concurrent jobs do not use more threads than there are cores."""
    import torch  # imported here: it takes seconds, which other commands do not need

    cores, active_settings = available_threads(), settings()
    used_threads = (
        active_settings.threads * active_settings.slots if active_settings.engine == "local" else 0
    )
    text = f"{cores} cores available, torch uses {torch.get_num_threads()} threads"
    if used_threads > cores:
        jobs = f"{active_settings.slots} jobs with {active_settings.threads} threads"
        text += f"; {jobs} compete for them"
    fix = f"Set SLIMSCOPE_THREADS={max(1, cores // active_settings.slots)}, or leave it unset."
    return check("threads", used_threads <= cores, text, fix)


def device() -> HealthCheck:
    """Check that torch can use an installed GPU."""
    found, gpus = cards.report(), len(installed_gpus())
    text = ", ".join(card.name for card in found.cards)
    text = text or f"cpu; {gpus or 'no'} GPU{'s' * (gpus > 1)} installed. {found.reason}"
    fix = "Install torch with CUDA (pytorch.org/get-started) and a matching driver."
    return check("device", bool(found.cards) or not gpus, text, fix)


def native_decoder() -> HealthCheck:
    """Report the instruction set of the kernels on this CPU; builds them if necessary."""
    try:
        return HealthCheck("decoder", True, f"native, {described(kernels().name)}")
    except CompilerError as error:
        return HealthCheck("decoder", True, f"PyTorch, slower: {error.why}", error.do)


def speeds() -> HealthCheck:
    """Report the implementations that are fastest on this machine; measures them if necessary."""
    choices = []
    for name in CHOICES:
        with suppress(CompilerError, ValueError):  # the kernels do not support the work here
            choices.append(str(resolve_name(name)()))
    return HealthCheck("fastest here", True, "; ".join(choices))


def clock() -> HealthCheck:
    """Check the clock against the newest event. Queue, retention and copies depend on it."""
    now = datetime.now(UTC)
    ahead = queries.newest_event_at() / 1000 - now.timestamp()
    text = f"{now:%Y-%m-%d %H:%M} UTC"
    if ahead > TOLERANCE_S:
        text += f"; the newest event is {ahead:,.0f} s later, so the clock was set back"
    ok = ahead <= TOLERANCE_S and now > EARLIEST_TIME
    return check("clock", ok, text, "timedatectl set-ntp true")


def models() -> HealthCheck:
    """Check that the built-in toy model is available."""
    ready = [entry.name for entry in entries() if entry.ready]
    fix = "Reinstall Slimscope, which contains the toy model."
    return check("models", "toy" in ready, ", ".join(ready) or "none", fix)


def cached_models() -> HealthCheck:
    """Check the sizes of cached files against their manifests."""
    damaged = damaged_folders()
    text = ", ".join(map(str, damaged)) or "no file has changed"
    fix = "Delete the listed folders, which are downloaded again: rm -r FOLDER"
    return check("cache", not damaged, text, fix)


def texts() -> HealthCheck:
    """Check that a text is available."""
    ready = [corpus.name for corpus in corpora() if corpus.ready]
    return check("texts", bool(ready), ", ".join(ready) or "none", "slimscope setup")


def data_folder() -> HealthCheck:
    """Report the data folder and its schema revision."""
    text = f"{settings().root}, tables at {current_revision()}"
    return HealthCheck("data folder", True, text)


def privacy() -> HealthCheck:
    """Check that other users of the machine cannot read the data folder of a shared dashboard."""
    active_settings = settings()
    if not active_settings.shared:
        return HealthCheck("privacy", True, "not shared: your default permissions apply")
    paths = (active_settings.root, *database_files())
    open_paths = [path for path in paths if path.stat().st_mode & OTHER_USERS]
    text = (
        f"other users can read {_join_paths(open_paths)}" if open_paths else "private to your user"
    )
    fix = f"chmod -R go= '{active_settings.root}'"
    return check("privacy", not open_paths, text, fix)


def _join_paths(paths: list[Path]) -> str:
    more = f" and {len(paths) - MAX_NAMES} more" if len(paths) > MAX_NAMES else ""
    return ", ".join(map(str, paths[:MAX_NAMES])) + more


def disk() -> HealthCheck:
    """Check that at least 4 GB of disk space are free."""
    free = shutil.disk_usage(settings().root).free
    text = f"{free / 1e9:.1f} GB free; a run may need 4 GB"
    return check("disk", free > 4e9, text, "Free some space: slimscope disk shows candidates.")


def database_version() -> HealthCheck:
    """Report the database version. For a database server, check that its clock agrees with this
    machine, whose time is stored with figures."""
    engine = engine_for(settings().url)
    dialect = dialect_of(engine)
    text = dialect.version(engine)
    if dialect.one_machine:
        is_safe = sqlite3.sqlite_version_info >= SAFE_SQLITE
        advice = "" if is_safe else "; only the supervisor checkpoints, to avoid a known bug"
        return HealthCheck(dialect.title, True, f"{text}{advice}")
    with reading() as session:
        offset_s = abs(database_ms(session) - now_ms()) / 1000
    text = f"{text}; its clock differs by {offset_s:,.1f} s"
    return check(dialect.title, offset_s < 2.0, text, "timedatectl set-ntp true")


def integrity() -> HealthCheck:
    """Check the integrity of the database file."""
    result = check_integrity()
    if result is None:
        engine = engine_for(settings().url)
        dialect = dialect_of(engine)
        size = readable_bytes(dialect.bytes(engine))
        return HealthCheck("database", True, f"{size}, on a server. {dialect.backup_advice}")
    text = "; ".join(result.problems[:MAX_NAMES]) or "intact"
    return check("database", not result.problems, text, repair_advice())


def copies() -> HealthCheck:
    """Report the daily copies of the database file."""
    if not has_file():
        return HealthCheck("daily copies", True, "not made for a database server")
    database_copies, keeps_copies = daily_copies(), settings().backups
    summary = (
        f"{len(database_copies)}, the newest {database_copies[0].name}"
        if database_copies
        else "none yet"
    )
    return HealthCheck(
        "daily copies", True, summary if keeps_copies else "off (SLIMSCOPE_BACKUPS=0)"
    )


def orphans() -> HealthCheck:
    """Check for artifact folders without a run."""
    folders = orphaned_folders()
    text = f"no run for {_join_paths(folders)}" if folders else "every artifact folder has its run"
    fix = "Delete the folders if you do not need them: rm -r FOLDER"
    return check("artifacts", not folders, text, fix)


def supervisor() -> HealthCheck:
    """Check for a supervisor that hangs, or sleeps although runs are waiting."""
    alive, status = SUPERVISOR.is_alive(), scheduling.status()
    waiting = len(status.live) + len(status.queued)
    if alive and not status.supervisor_alive:
        fix = f"Kill it; a new one starts automatically: fuser -k '{SUPERVISOR.path('.lock')}'"
        return HealthCheck("supervisor", False, "hangs: holds its lock, but does not work", fix)
    if waiting and not alive and not status.supervisor_alive:
        text = f"asleep; waiting runs: {waiting}"
        return HealthCheck("supervisor", False, text, "Open the dashboard, which wakes it.")
    return HealthCheck(
        "supervisor", True, "alive" if alive else "asleep; wakes when a run is added"
    )
