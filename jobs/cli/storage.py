"""Commands for the data folder: backup, restore, move, export, import, disk."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from sqlalchemy import make_url

from backend.backup import writing
from backend.backup.databases import is_database, move_database, replace_database
from backend.backup.reading import restore_backup
from backend.backup.single import export_run, import_run
from backend.backup.writing import write_backup
from backend.printable import readable_bytes
from backend.queue import scheduling
from backend.queue.actor import Actor
from backend.queue.removal import CHECKPOINTS, data_folder_use, disk_use
from backend.settings import settings
from backend.store import queries
from backend.store.copies import check_integrity, repair_advice
from jobs.imported import check_row
from jobs.operations.registry import Record, Run, operation
from jobs.record import summary
from jobs.wording import count, table

Target = Annotated[Path, Field(description="File to write, such as monday.tar.")]


def _file_text(result: Record) -> str:
    files = f"{result['files']} files, " if "files" in result else ""
    return f"{result['file']}: {files}{readable_bytes(result['bytes'])}."


@operation("backup", path="", tool="", as_text=_file_text)
def backup(
    file: Target,
    weights: Annotated[bool, typer.Option(help="Include the weights of models.")] = True,
    checkpoints: Annotated[
        bool, Field(description="Include checkpoints of unfinished runs.")
    ] = False,
) -> Record:
    """Back up the data folder into one file. Runs continue meanwhile."""
    if (integrity := check_integrity()) and integrity.problems:
        print(f"The database is damaged. The backup will be damaged, too. {repair_advice()}")
    with _bar("Writing") as progress:
        manifest = write_backup(
            file.absolute(), weights=weights, checkpoints=checkpoints, progress=progress
        )
    return {"file": str(file), "files": len(manifest.files), "bytes": file.stat().st_size}


def _restore_text(result: Record) -> str:
    if "replaced" in result:
        return f"{result['database']} is now the database. Old database: {result['replaced']}"
    when = datetime.fromtimestamp(result["created_at"] / 1000, UTC)
    text = (
        f"Restored into {result['folder']}: {count(result['runs'])} of {when:%Y-%m-%d %H:%M} UTC."
    )
    text += "\nAPI keys of the backup are revoked. Create new keys: slimscope token NAME"
    if result["queued"]:
        queued = ", ".join(result["queued"])
        text += f"\nQueued: {queued}. They start with the dashboard or when you add a run."
    return text


@operation("restore", path="", tool="", database="none", as_text=_restore_text)
def restore(
    file: Annotated[Path, Field(description="Backup, or daily copy of the database.")],
) -> Record:
    """Restore a backup into an empty data folder, or replace a damaged database with a daily
    copy."""
    if is_database(file):
        return {"database": str(file), "replaced": str(replace_database(file))}
    with _bar("Restoring") as progress:
        manifest = restore_backup(file.absolute(), progress)
    status = scheduling.status()
    return {
        "folder": str(settings().root),
        "created_at": manifest.created_at,
        "runs": status.finished + len(status.queued),
        "queued": [job.run for job in status.queued],
    }


def _move_text(result: Record) -> str:
    return (
        f"{result['rows']:,} rows were copied and compared. The old database was not changed.\n"
        f"Use the new one: export SLIMSCOPE_DATABASE_URL='{result['url']}'"
    )


@operation("move", path="", tool="", as_text=_move_text)
def move(to: Annotated[str, typer.Option("--to", help="URL of an empty database.")]) -> Record:
    """Copy all tables into another database: from SQLite to PostgreSQL or back."""
    rows = move_database(to, lambda name, number: print(f"{name:<18} {number:>10,} rows"))
    return {"rows": rows, "url": make_url(to).render_as_string(hide_password=True)}


@operation("export", path="", tool="", as_text=_file_text)
def export(
    run: Run,
    file: Target,
    weights: Annotated[bool, Field(description="Include saved models.")] = False,
) -> Record:
    """Export a finished run to one file: config, figures, statistics, logs. Read it with `slimscope
    import`."""
    with _bar("Writing") as progress:
        export_run(run, file.absolute(), weights=weights, progress=progress)
    return {"file": str(file), "bytes": file.stat().st_size}


@operation(
    "import",
    path="",
    tool="",
    as_text=lambda run: f"{run['id']}: {run['name'] or run['kind']}, {run['state']}.",
)
def import_file(
    file: Annotated[Path, Field(description="File written by `slimscope export`.")], actor: Actor
) -> Record:
    """Import a run from a file, under a new number."""
    with _bar("Reading") as progress:
        return summary(import_run(file.absolute(), actor, check_row, progress))


@contextmanager
def _bar(title: str) -> Iterator[writing.Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(title, total=None)
        yield lambda bytes_done, total: progress.update(task, completed=bytes_done, total=total)


def _disk_text(result: Record) -> str:
    lines = [f"{part:<24} {readable_bytes(size):>10}" for part, size in result["bytes"].items()]
    rows = [
        (
            run["id"],
            run["state"],
            readable_bytes(sum(run["bytes"].values())),
            ", ".join(f"{part} {readable_bytes(size)}" for part, size in run["bytes"].items()),
        )
        for run in result["largest"]
    ]
    empty_text = "No finished run has been measured yet."
    lines.append(table(("run", "state", "total", "parts"), rows) if rows else empty_text)
    if freeable := result["freeable"]:
        total, largest = readable_bytes(sum(freeable.values())), max(freeable, key=freeable.get)
        lines.append(f"Checkpoints of {count(len(freeable))} without success: {total}.")
        lines.append(f"Largest: slimscope free {largest} (a resumed run then starts over).")
    return "\n".join(lines)


@operation("disk", path="", tool="", as_text=_disk_text)
def disk(limit: Annotated[int, Field(ge=1, le=1000, description="Number of runs.")] = 10) -> Record:
    """Show disk usage and what can be freed."""
    measured = [(job, disk_use(job.run)) for job in queries.largest(limit)]
    unfinished = queries.resumable_before(int(time.time() * 1000))
    freeable = {job.run: n for job in unfinished if (n := disk_use(job.run).get(CHECKPOINTS, 0))}
    largest = [{"id": job.run, "state": job.state, "bytes": parts} for job, parts in measured]
    return {"bytes": data_folder_use(), "largest": largest, "freeable": freeable}
