"""Checks of the data folder: disk, permissions, database, copies, leftovers and queue."""

import shutil
import sqlite3
import stat
from pathlib import Path

from backend.printable import readable_bytes
from backend.queue import scheduling
from backend.queue.artifacts.disk import orphaned_folders
from backend.queue.launcher import SUPERVISOR
from backend.settings import settings
from backend.store.copies import daily_copies, database_files, has_file, repair_advice
from backend.store.dialects.choice import dialect_of
from backend.store.integrity import check_integrity
from backend.store.migrate import current_revision
from backend.store.session import database_ms, engine_for, now_ms, reading
from jobs.cli.doctor.check import HealthCheck, check
from jobs.operations.text import count

SAFE_SQLITE = (3, 51, 3)  # earlier ones may corrupt a log that two connections check-point
NEEDED_DISK = 4e9
MOST_SECONDS_OFF = 2.0
OTHERS = stat.S_IRWXG | stat.S_IRWXO
SHOWN = 3  # names in one finding


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
    return check("disk", free > NEEDED_DISK, text, "slimscope disk shows what can be freed.")


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
    return check(dialect.title, off < MOST_SECONDS_OFF, text, "timedatectl set-ntp true")


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
    """Artefact folders without a run."""
    found = orphaned_folders()
    text = f"no run knows {_some(found)}" if found else "every artefact folder has its run"
    fix = "Delete them if nothing in them is needed: rm -r FOLDER"
    return check("artefacts", not found, text, fix)


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
