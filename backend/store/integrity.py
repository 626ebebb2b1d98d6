"""SQLite's own checks of the database, and their last result, kept in a file beside it: a damaged
database cannot be trusted with it. A check reads the whole database (about a second per 300 MB) and
holds up nobody."""

import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path

from backend.settings import settings
from backend.store.copies import has_file
from backend.store.dialects.base import driver_connection
from backend.store.session import engine_for, now_ms

MOST_PROBLEMS = 20


@dataclass(frozen=True)
class IntegrityResult:
    """The result of a check at `at`, UTC milliseconds since 1970: problems as SQLite words them."""

    at: int
    problems: list[str]


def check_integrity() -> IntegrityResult | None:
    """Check the database and keep the result; None if it is not an SQLite database. Raises
    `sqlite3.OperationalError` if it cannot be read now, which says nothing about it."""
    if not has_file():
        return None
    result = IntegrityResult(now_ms(), _problems())
    draft = _file().with_suffix(".tmp")
    draft.parent.mkdir(exist_ok=True)
    draft.write_text(json.dumps(asdict(result)))
    draft.replace(_file())
    return result


def last_check() -> IntegrityResult | None:
    if not has_file():
        return None  # it is that of another database
    try:
        stored = json.loads(_file().read_text())
        return IntegrityResult(int(stored["at"]), [str(text) for text in stored["problems"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file() -> Path:
    return settings().root / ".slimscope" / "integrity.json"


def _problems() -> list[str]:
    with engine_for(settings().url).connect() as connection:
        raw = driver_connection(connection)
        try:
            rows = raw.execute(f"PRAGMA quick_check({MOST_PROBLEMS})").fetchall()
            orphans = raw.execute("PRAGMA foreign_key_check").fetchmany(MOST_PROBLEMS)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:  # too damaged to be checked
            return [str(error)]
    pages = [str(text) for (text,) in rows if text != "ok"]
    return pages + [
        f"{table}: row {row} has lost its {parent}" for table, row, parent, _ in orphans
    ]
