"""Migrate the database to the newest revision. Safe to call concurrently, and cheap if there is
nothing to do."""

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
    """The newest revision: migrations are numbered files."""
    return max(p.stem.split("_")[0] for p in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def current_revision() -> str | None:
    """The revision of the database, None if it is empty."""
    with engine_for(settings().url).connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return revision


def installed() -> tuple[str, str]:
    """Version and newest revision of the code that processes load now; empty while that changes."""
    with suppress(PackageNotFoundError, ValueError):
        return version("slimscope"), newest_revision()
    return "", ""


OWN = installed()  # what this process has loaded
RESTART = (
    "Another version of Slimscope {}: restart the dashboard. Running jobs continue; new ones wait."
)


def other_version() -> str:
    """What to say where the database, or the code that processes load now, is of another version
    than this process; else ""."""
    if installed() != OWN:
        return RESTART.format("has been installed")
    is_migrated = current_revision() not in (OWN[1], None)
    return RESTART.format("has migrated the database") if is_migrated else ""


def upgrade() -> None:
    """Create the data folder and its tables, or migrate them to the newest revision."""
    settings().root.mkdir(parents=True, exist_ok=True)
    if current_revision() == newest_revision():
        return
    lock = settings().root / ".slimscope" / "migrate.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        if current_revision() != newest_revision():
            run_migrations()


def run_migrations(connection: Connection | None = None) -> None:
    """Migrate the database of the settings; or another one, in the transaction of a connection."""
    from alembic import command  # slow imports, needed once per release
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
