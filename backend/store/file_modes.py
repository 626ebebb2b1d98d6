"""File modes: of a shared dashboard, no other user of the machine reads what runs have stored. On a
dashboard of one's own they follow the umask, also those of models (`Checkpoints.write`)."""

import logging
import os
from pathlib import Path

from backend.settings import settings
from backend.store.copies import database_files

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
    for file in database_files():
        _restrict(file, 0o600)


def _restrict(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except OSError as error:  # it belongs to another user, or is on a disk without permissions
        log.warning("Other users may be able to read %s: %s", path, error.strerror)
