"""Is this machine ready? One line for each thing a run needs."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass

import psutil

from backend.models.sources.catalogue import entries
from backend.queue.launcher import is_alive
from backend.settings import available_threads, settings
from backend.store.migrate import current_revision
from backend.text.corpora import corpora

SAFE_SQLITE = (3, 51, 3)  # earlier ones may corrupt a log that two connections check-point
NEEDED_DISK = 4e9


@dataclass(frozen=True)
class HealthCheck:
    """One thing that was looked at."""

    name: str
    ok: bool
    text: str


def examine() -> list[HealthCheck]:
    """Looks at everything a run needs. Starts and changes nothing."""
    free = shutil.disk_usage(settings().root).free
    memory = psutil.virtual_memory()
    ready = [e.name for e in entries() if e.ready]
    texts = [c.name for c in corpora() if c.ready]
    return [
        HealthCheck("data folder", True, f"{settings().root}, tables at {current_revision()}"),
        HealthCheck("disk", free > NEEDED_DISK, f"{free / 1e9:.1f} GB free; a run may need 4 GB"),
        HealthCheck(
            "memory", True, f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
        ),
        HealthCheck("threads", True, f"{available_threads()} available"),
        HealthCheck("device", True, _device()),
        HealthCheck("models", "toy" in ready, ", ".join(ready) or "none"),
        HealthCheck("texts", bool(texts), ", ".join(texts) or "none"),
        HealthCheck("database", True, _sqlite()),
        HealthCheck(
            "supervisor", True, "alive" if is_alive() else "asleep; wakes when a run is added"
        ),
    ]


def _device() -> str:
    import torch  # here: it takes seconds that no other command needs

    if not torch.cuda.is_available():
        return f"cpu (torch {torch.__version__}); no GPU that torch can use"
    return f"{torch.cuda.get_device_name()} (torch {torch.__version__})"


def _sqlite() -> str:
    known = sqlite3.sqlite_version_info >= SAFE_SQLITE
    advice = "" if known else "; only the supervisor check-points, which avoids a known bug"
    return f"SQLite {sqlite3.sqlite_version}{advice}"
