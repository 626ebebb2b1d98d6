"""Migration of the database to the newest revision; safe to call concurrently."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock
from sqlalchemy import Connection, inspect, text

from backend.errors import ConflictError
from backend.settings import settings
from backend.store.session import engine_for

MIGRATIONS = Path(__file__).parent / "migrations"


def newest_revision() -> str:
    """The newest revision, the highest number of a migration file."""
    return max(p.stem.split("_")[0] for p in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def current_revision() -> str | None:
    """The revision of the database; None if it is empty."""
    with engine_for(settings().url).connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return revision


def installed_version() -> tuple[str, str]:
    """Version and newest revision of the installed code; empty during an installation."""
    with suppress(PackageNotFoundError, ValueError):
        return version("slimscope"), newest_revision()
    return "", ""


LOADED_VERSION = installed_version()  # version of the code in this process
RESTART_ADVICE = (
    "Another version of Slimscope {}: restart the dashboard. Running jobs continue; new ones wait."
)


def other_version() -> str:
    """A message if the database or the installed code has another version than this process; else
    empty."""
    if installed_version() != LOADED_VERSION:
        return RESTART_ADVICE.format("has been installed")
    is_migrated = current_revision() not in (LOADED_VERSION[1], None)
    return RESTART_ADVICE.format("has migrated the database") if is_migrated else ""


def upgrade() -> None:
    """Create the data folder and its tables, or migrate the tables to the newest revision."""
    settings().root.mkdir(parents=True, exist_ok=True)
    if current_revision() == newest_revision():
        return
    lock = settings().root / ".slimscope" / "migrate.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        if current_revision() != newest_revision():
            run_migrations()


def run_migrations(connection: Connection | None = None) -> None:
    """Migrate the database of the settings, or another one in the transaction of a connection.

    Raises:
        ConflictError: the database was created by an unknown version.
    """
    from alembic import command  # imported here: slow, and needed once per release
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConflictError(
            "The database was created by another version of Slimscope.",
            f"{error}.",
            "Install that version.",
        ) from error
