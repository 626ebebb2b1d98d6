"""The command line: `slimscope …`, or `python -m jobs …`.

Exit codes: 0 success, 1 run failed or lost, 2 request rejected, 3 run cancelled, 4 reproduction
mismatch. With --json a command prints one JSON value and nothing else.
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
    """On a shared dashboard, restrict the data folder (0700), the database (0600), and all files
    created later by this process and its children to the current user."""
    active_settings = settings()
    if not active_settings.shared:
        return
    os.umask(0o077)
    active_settings.root.mkdir(parents=True, exist_ok=True)
    _restrict(active_settings.root, 0o700)
    for file in database_files():
        _restrict(file, 0o600)


def _restrict(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except OSError as error:  # owned by another user, or a file system without permissions
        log.warning("Other users may be able to read %s: %s", path, error.strerror)


class OperationGroup(TyperGroup):
    """Command group with one command per operation."""

    def __init__(self, **attributes: Any) -> None:
        declared = OPERATIONS.declarations
        names = [name for name, known in declared.items() if known.facts.get("command", True)]
        commands = Commands(lambda: names, OPERATIONS.__getitem__)
        super().__init__(**attributes | {"commands": commands})


app = typer.Typer(
    cls=OperationGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    context_settings=CONTEXT,
)


@app.callback(invoke_without_command=True)
def prepare(context: typer.Context) -> None:
    """Compress causal language models and measure the effect. Without a command: open the
    dashboard."""
    name = context.invoked_subcommand or "serve"
    restrict_access()
    operation = OPERATIONS[name]
    takes_runs = {"run", "runs"} & {*operation.parameters}
    if operation.database != "none" and not has_database() and takes_runs:
        raise NotFoundError(f"There are no runs in {settings().root}.", "", FIRST_STEP)
    if operation.database == "ready" or (operation.database == "optional" and has_database()):
        upgrade()
    if not context.invoked_subcommand:
        operation.function()


def main() -> None:
    """Entry point of the console script."""
    with in_one_line():
        app()
