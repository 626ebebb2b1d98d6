"""The command line: `slimscope …`, or `python -m jobs …`.

Exit codes: 0 done, 1 the run failed or was lost, 2 the request was refused, 3 the run was
cancelled, 4 reproduction mismatch. With --json a command prints one JSON value and nothing else.
"""

import logging
import os
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from backend.errors import NotFoundError
from backend.settings import settings
from backend.store.copies import database_files, has_database
from backend.store.migrate import upgrade
from jobs.cli.command import CONTEXT, MARKUP, Commands, in_one_line
from jobs.operations.registry import OPERATIONS
from jobs.operations.runs import FIRST_STEP

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


def _names() -> list[str]:
    declared = OPERATIONS.declarations
    return [name for name, each in declared.items() if each.facts.get("command", True)]


class OperationGroup(TyperGroup):
    """One command for each operation."""

    def __init__(self, **about: Any) -> None:
        super().__init__(**about | {"commands": Commands(_names, OPERATIONS.__getitem__)})


app = typer.Typer(
    cls=OperationGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    context_settings=CONTEXT,
)


@app.callback(invoke_without_command=True)
def prepare(context: typer.Context) -> None:
    """Compress causal language models and see what compression does to them. Without a command:
    open the dashboard."""
    name = context.invoked_subcommand or "serve"
    restrict_access()
    found = OPERATIONS[name]
    about_runs = {"run", "runs"} & {*found.parameters}
    if found.database != "none" and not has_database() and about_runs:
        raise NotFoundError(f"There are no runs in {settings().root}.", "", FIRST_STEP)
    if found.database == "ready" or (found.database == "optional" and has_database()):
        upgrade()
    if not context.invoked_subcommand:
        found.function()


def main() -> None:
    """The console script."""
    with in_one_line():
        app()
