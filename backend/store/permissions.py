"""Who may read what runs have stored: where the dashboard is shared, no other user of the machine
than the one it runs as. On a dashboard of one's own the permissions are those of the umask."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from backend.settings import settings
from backend.store.copies import has_file
from backend.store.dialects.choice import dialect_of
from backend.store.session import engine_for

log = logging.getLogger("slimscope")


def restrict_access() -> None:
    """Of a shared dashboard, keep the data folder (0700) and the database (0600) from other users,
    and so every file that this process and its children make later."""
    here = settings()
    if not here.shared:
        return
    os.umask(0o077)
    here.root.mkdir(parents=True, exist_ok=True)
    _restrict(here.root, 0o700)
    for file in database_files(here.url):
        _restrict(file, 0o600)


def _restrict(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except OSError as error:  # it belongs to another user, or is on a disk without permissions
        log.warning("Other users may be able to read %s: %s", path, error.strerror)


def database_files(url: str) -> list[Path]:
    """The files of an SQLite database that exist, and of its write-ahead log."""
    engine = engine_for(url)
    return dialect_of(engine).files(engine.url)


def has_database() -> bool:
    """Whether there is a database. Looking into an SQLite file that is not there creates it."""
    return not has_file() or bool(database_files(settings().url))
