"""The command line: `slimscope …`, or `python -m jobs …`.

Exit codes: 0 done, 1 the run failed or was lost, 2 the request was refused, 3 the run was
cancelled, 4 reproduction mismatch. With --json a command prints one JSON value and nothing else.
"""

from typing import Any

import typer
from typer.core import TyperGroup

from backend.errors import NotFoundError
from backend.settings import settings
from backend.store.copies import has_database
from backend.store.file_modes import restrict_access
from backend.store.migrate import upgrade
from jobs.cli.command import CONTEXT, MARKUP, Commands
from jobs.cli.console import in_one_line
from jobs.operations.registry import OPERATIONS
from jobs.operations.runs import FIRST_STEP


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


if __name__ == "__main__":
    main()
