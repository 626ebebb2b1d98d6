"""Commands that keep the list of runs in order: delete, undelete, archive, rename."""

from __future__ import annotations

from typing import Annotated

import typer

from backend.printable import readable_bytes
from backend.queue.artifacts.disk import disk_use
from backend.store import queries
from jobs import operations
from jobs.cli.console import me, say

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Runs = Annotated[list[str], typer.Argument(help="Runs, such as sds-0042.")]
COMMANDS = ("delete", "undelete", "archive", "rename")


def add_runs(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("delete")(delete)
    app.command("undelete")(undelete)
    app.command("archive")(archive)
    app.command("rename")(rename)


def delete(
    runs: Runs,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    now: Annotated[bool, typer.Option("--now", help="For good, without a day to undo it.")] = False,
    as_json: Json = False,
) -> None:
    """Delete runs that have ended. For a day, `slimscope undelete` brings them back."""
    names = [queries.job(run).run for run in runs]
    size = readable_bytes(sum(sum(disk_use(name).values()) for name in names))
    if not yes:
        typer.confirm(f"Delete {', '.join(names)} ({size})?", abort=True, err=True)
    records = operations.delete_runs(names, me())
    if now:
        operations.purge_runs(names, me())
        said = f"{size} freed."
    else:
        said = f"{size} will be freed in a day. Undo: slimscope undelete {' '.join(names)}"
    say(records, as_json, f"Deleted: {', '.join(names)}. {said}")


def undelete(runs: Runs, as_json: Json = False) -> None:
    """Bring back runs that were deleted less than a day ago."""
    records = operations.restore_runs(runs, me())
    names = ", ".join(record["id"] for record in records)
    say(records, as_json, f"Restored: {names}." if names else "None of them is deleted.")


def archive(
    runs: Runs,
    back: Annotated[bool, typer.Option("--back", help="Take them out of the archive.")] = False,
    as_json: Json = False,
) -> None:
    """Take runs out of the usual lists; everything about them stays."""
    records = operations.archive_runs(runs, me(), back)
    done = "Back in the lists" if back else "Archived"
    say(records, as_json, f"{done}: {', '.join(record['id'] for record in records) or 'none'}.")


def rename(
    run: Annotated[str, typer.Argument(help="A run, such as sds-0042.")],
    name: Annotated[str, typer.Argument(help="Its new name.")],
    as_json: Json = False,
) -> None:
    """Give a run another name."""
    record = operations.rename_run(run, name, me())
    say(record, as_json, f"{record['id']} is called {record['name'] or 'nothing'} now.")
