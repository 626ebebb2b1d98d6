"""Commands about the data folder: backup, restore, export and import of a run, disk, free."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from sqlalchemy import make_url

from backend.backup import archive
from backend.backup.moving import move_database
from backend.backup.replacing import is_database, replace_database
from backend.backup.restoring import restore_backup
from backend.backup.single import export_run, import_run
from backend.backup.writing import write_backup
from backend.printable import readable_bytes
from backend.queue import scheduling
from backend.queue.artifacts.disk import CHECKPOINTS, data_folder_use, disk_use
from backend.settings import settings
from backend.store import queries
from backend.store.copies import repair_advice
from backend.store.integrity import check_integrity
from backend.store.migrate import upgrade
from backend.store.states import RESUMABLE
from jobs import operations
from jobs.cli.console import me, out, runs, say
from jobs.imported import check_row

RESTORE = "restore"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_storage(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("backup")(backup)
    app.command(RESTORE)(restore)
    app.command("move")(move)
    app.command("export")(export)
    app.command("import")(import_)
    app.command("disk")(disk)
    app.command("free")(free)


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write, such as monday.tar.")],
    weights: Annotated[bool, typer.Option(help="Include the weights of models.")] = True,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Include checkpoints of unfinished runs.")
    ] = False,
) -> None:
    """Back up the data folder into one file, while runs continue."""
    if (checked := check_integrity()) and checked.problems:
        out.print(f"The database is damaged, and so will be the backup. {repair_advice()}")
    with _bar("Writing") as progress:
        manifest = write_backup(
            file.absolute(), weights=weights, checkpoints=checkpoints, progress=progress
        )
    size = readable_bytes(file.stat().st_size)
    out.print(f"{file}: {len(manifest.files)} files, {size}.", markup=False)


def restore(file: Annotated[Path, typer.Argument(help="A backup.")]) -> None:
    """Restore a backup into the data folder, which has to be empty; or put a daily copy of the
    database in place of a damaged one."""
    if is_database(file):
        kept = replace_database(file)
        out.print(f"{file} is the database now. The old one: {kept}", markup=False)
        return
    with _bar("Restoring") as progress:
        manifest = restore_backup(file.absolute(), progress)
    made = datetime.fromtimestamp(manifest.created_at / 1000, UTC)
    status = scheduling.status()
    held = runs(status.finished + len(status.queued))
    text = f"Restored into {settings().root}: {held} of {made:%Y-%m-%d %H:%M} UTC."
    out.print(text, markup=False)
    if status.queued:
        again = ", ".join(job.run for job in status.queued)
        out.print(f"Queued: {again}. They start with the dashboard, or when a run is added.")


def move(
    to: Annotated[str, typer.Option("--to", help="URL of an empty database.")],
) -> None:
    """Move all tables into another database, such as PostgreSQL, or back into a file."""
    rows = move_database(to, lambda table, count: out.print(f"{table:<18} {count:>10,} rows"))
    shown = make_url(to).render_as_string(hide_password=True)
    out.print(f"{rows:,} rows were copied and compared. The old database was not changed.")
    out.print(f"From now on: export SLIMSCOPE_DATABASE_URL='{shown}'", markup=False, soft_wrap=True)


def export(
    run: Annotated[str, typer.Argument(help="A run that has ended, such as sds-0042.")],
    file: Annotated[Path, typer.Argument(help="The file to write, such as sds-0042.tar.")],
    weights: Annotated[bool, typer.Option("--weights", help="Include saved models.")] = False,
) -> None:
    """Write a run into one file: config, figures, statistics, logs. `slimscope import` reads it."""
    with _bar("Writing") as progress:
        export_run(run, file.absolute(), weights=weights, progress=progress)
    out.print(f"{file}: {readable_bytes(file.stat().st_size)}.", markup=False)


def import_(
    file: Annotated[Path, typer.Argument(help="A file that `slimscope export` wrote.")],
    as_json: Json = False,
) -> None:
    """Add a run from a file, under a number of its own."""
    upgrade()
    with _bar("Reading") as progress:
        job = import_run(file.absolute(), me(), check_row, progress)
    say({"id": job.run}, as_json, f"{job.run}: {job.name or job.kind}, {job.state}.")


@contextmanager
def _bar(title: str) -> Iterator[archive.Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def disk(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of runs.")] = 10,
    as_json: Json = False,
) -> None:
    """Show what takes disk space, and what can be freed."""
    use = data_folder_use()
    measured = [(job, disk_use(job.run)) for job in queries.largest(limit)]
    unfinished = queries.ended_before(RESUMABLE, int(time.time() * 1000))
    freeable = {job.run: n for job in unfinished if (n := disk_use(job.run).get(CHECKPOINTS, 0))}
    if as_json:
        largest = [{"id": job.run, "state": job.state, "bytes": parts} for job, parts in measured]
        print(json.dumps({"bytes": use, "largest": largest, "freeable": freeable}, indent=1))
        return
    for part, size in use.items():
        out.print(f"{part:<24} {readable_bytes(size):>10}")
    table = Table("run", "state", "total", "of which", box=None)
    for job, parts in measured:
        of_which = ", ".join(f"{part} {readable_bytes(size)}" for part, size in parts.items())
        table.add_row(job.run, job.state, readable_bytes(sum(parts.values())), of_which)
    out.print(table if measured else "No run that has ended has been measured yet.")
    _say_freeable(freeable)


def _say_freeable(freeable: dict[str, int]) -> None:
    if freeable:
        total = readable_bytes(sum(freeable.values()))
        largest = max(freeable, key=lambda run: freeable[run])
        out.print(f"Checkpoints of {runs(len(freeable))} that did not succeed: {total}.")
        out.print(f"The largest: slimscope free {largest} (resuming starts from the beginning).")


def free(
    run: Annotated[str, typer.Argument(help="A run that has ended, such as sds-0042.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete the checkpoints of a run that has ended; resuming it starts from the beginning."""
    if not yes:
        typer.confirm(f"Delete the checkpoints of {queries.job(run).run}?", abort=True, err=True)
    record = operations.free_space(run, me())
    say(record, as_json, f"{record['id']}: {readable_bytes(record['freed_bytes'])} freed.")
