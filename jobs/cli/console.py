"""What all commands of the command line share: who asks, errors in one line, exit codes."""

import getpass
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from backend.errors import SlimscopeError
from backend.printable import printable
from backend.queue.actor import Actor
from backend.queue.launcher import SUPERVISOR
from backend.settings import settings
from backend.store import queries
from backend.store.copies import has_file, repair_advice
from backend.store.states import TERMINAL, State
from backend.store.tables import Job

EXPECTED = (SlimscopeError, DBAPIError, ValidationError, SettingsError, OSError)
REFUSED, FAILED, CANCELLED, DIFFERENT = 2, 1, 3, 4
EXIT = {State.SUCCEEDED: 0, State.FAILED: FAILED, State.LOST: FAILED, State.CANCELLED: CANCELLED}
NAP_S = 0.5


def me() -> Actor:
    """Whoever has a shell on this machine is a host."""
    return Actor(getpass.getuser(), "host")


@contextmanager
def in_one_line() -> Iterator[None]:
    """Ends with one line where something is refused, or the settings, the database or the disk do
    not let us work; a bug still shows its trace."""
    try:
        yield
    except BrokenPipeError:
        raise
    except EXPECTED as error:
        print(f"slimscope: {printable(in_words(error))}", file=sys.stderr)
        sys.exit(REFUSED)


def in_words(error: Exception) -> str:
    """An error as one line."""
    match error:
        case SlimscopeError():
            return " ".join(map(str, (error, *error.others)))
        case DBAPIError():
            why = str(error.orig or error).splitlines()[0]
            damaged = isinstance(error.orig, sqlite3.DatabaseError) and not isinstance(
                error.orig, sqlite3.OperationalError | sqlite3.IntegrityError
            )
            do = f" {repair_advice()}" if damaged else ""
            url = make_url(settings().url).render_as_string(hide_password=True)
            place = f"in {settings().root}" if has_file() else f"at {url}"
            return f"The database {place} cannot be used: {why}.{do}"
        case ValidationError():  # of the settings: configs have errors of ours
            wrong = ((each["loc"], each["msg"]) for each in error.errors())
            return " ".join(
                f"SLIMSCOPE_{str(next(iter(place), '')).upper()} was not accepted: {reason}."
                for place, reason in wrong
            )
    return str(error)


def write(text: str, end: str = "\n") -> None:
    """Prints text that a run may contain: it cannot control the terminal."""
    print(printable(text), end=end, flush=True)


def exit_of(state: str) -> int:
    """The exit code of a command whose run has ended in this state."""
    return EXIT[State(state)]


def follow(run: str) -> Job:
    """Prints how far a run is until it has ended."""
    printed = ""
    while (job := queries.job(run)).state not in TERMINAL:
        SUPERVISOR.wake()  # ours may have been killed
        share = "   –" if job.share is None else f"{job.share:4.0%}"
        line = f"{job.run}  {job.state:<10} {share}  {job.stage}"
        if line != printed:
            write(line)
        printed = line
        time.sleep(NAP_S)
    return job
