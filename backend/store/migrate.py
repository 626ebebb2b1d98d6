"""Brings the tables up to date. Safe to call from several processes at once, and cheap when there
is nothing to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import inspect, text

from backend.errors import ConflictError
from backend.settings import settings
from backend.store.session import engine_for

MIGRATIONS = Path(__file__).parent / "migrations"


def newest_revision() -> str:
    """The revision this code was written for: migrations are numbered files."""
    return max(p.stem.split("_")[0] for p in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def current_revision() -> str | None:
    """The revision of the database, None when it is empty."""
    with engine_for(settings().url).connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return revision


def upgrade() -> None:
    """Creates the data folder and its tables, or migrates them to the newest revision."""
    settings().root.mkdir(parents=True, exist_ok=True)
    if current_revision() == newest_revision():
        return
    lock = settings().root / ".slimscope" / "migrate.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        if current_revision() != newest_revision():
            _run_alembic()


def alembic_config() -> Any:
    """Alembic's config for our migrations."""
    from alembic.config import Config  # here: it takes half a second, and is needed once a release

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _run_alembic() -> None:
    from alembic import command
    from alembic.util import CommandError

    try:
        command.upgrade(alembic_config(), "head")
    except CommandError as error:
        what = "The database is of another version of Slimscope."
        raise ConflictError(what, f"{error}.", "Install the version that made it.") from error
