"""What all commands of the command line share: who asks, how answers are printed, exit codes."""

from __future__ import annotations

import getpass
import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
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
UNBOUNDED = 1_000_000  # columns of a line that no terminal shows
PERPLEXITY = "perplexity"  # what is printed of a sweep when nothing else is asked for


class PrintableConsole(Console):
    """A console whose styles are its own: what runs contain cannot control the terminal. In a pipe
    or a file nothing is wrapped or cut, whatever the width of the terminal beside it."""

    def print(self, *objects: Any, **how: Any) -> None:
        if not self.file.isatty():
            self.width = UNBOUNDED
        super().print(*objects, **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text), style)


out = PrintableConsole(highlight=False)


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
            return f"The database {_place()} cannot be used: {why}.{do}"
        case ValidationError():  # of the settings: configs have errors of ours
            wrong = ((each["loc"], each["msg"]) for each in error.errors())
            return " ".join(
                f"SLIMSCOPE_{str(next(iter(place), '')).upper()} was not accepted: {reason}."
                for place, reason in wrong
            )
    return str(error)


def _place() -> str:
    """Where the database is, without a password."""
    if has_file():
        return f"in {settings().root}"
    return f"at {make_url(settings().url).render_as_string(hide_password=True)}"


def runs(number: int) -> str:
    """1 run, 12 runs."""
    return f"{number} run{'' if number == 1 else 's'}"


def write(text: str) -> None:
    """Prints text that a run contains, as it is but for control characters."""
    print(printable(text), end="", flush=True)


def say(value: Any, as_json: bool, text: str) -> None:
    """Prints the JSON value, or the text for people."""
    print(json.dumps(value, indent=1) if as_json else printable(text))


def follow(run: str, quiet: bool) -> Job:
    """Prints how far a run is until it has ended."""
    printed = ""
    while (job := queries.job(run)).state not in TERMINAL:
        SUPERVISOR.wake()  # ours may have been killed
        share = "   –" if job.share is None else f"{job.share:4.0%}"
        line = f"{job.run}  {job.state:<10} {share}  {job.stage}"
        if line != printed and not quiet:
            out.print(line)
        printed = line
        time.sleep(NAP_S)
    return job
