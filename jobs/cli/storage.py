"""Operations of the command line on the data folder: backup, restore, move, export, import."""

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

Target = Annotated[Path, Field(description="The file to write, such as monday.tar.")]


def _written(made: Record) -> str:
    files = f"{made['files']} files, " if "files" in made else ""
    return f"{made['file']}: {files}{readable_bytes(made['bytes'])}."


@operation("backup", path="", tool="", as_text=_written)
def backup(
    file: Target,
    weights: Annotated[bool, typer.Option(help="Include the weights of models.")] = True,
    checkpoints: Annotated[
        bool, Field(description="Include checkpoints of unfinished runs.")
    ] = False,
) -> Record:
    """Back up the data folder into one file, while runs continue."""
    if (checked := check_integrity()) and checked.problems:
        print(f"The database is damaged, and so will be the backup. {repair_advice()}")
    with _bar("Writing") as progress:
        manifest = write_backup(
            file.absolute(), weights=weights, checkpoints=checkpoints, progress=progress
        )
    return {"file": str(file), "files": len(manifest.files), "bytes": file.stat().st_size}


def _restored(made: Record) -> str:
    if "replaced" in made:
        return f"{made['database']} is the database now. The old one: {made['replaced']}"
    when = datetime.fromtimestamp(made["created_at"] / 1000, UTC)
    text = f"Restored into {made['folder']}: {count(made['runs'])} of {when:%Y-%m-%d %H:%M} UTC."
    text += "\nAPI keys of the backup are revoked. Make new ones with: slimscope token"
    if made["queued"]:
        queued = ", ".join(made["queued"])
        text += f"\nQueued: {queued}. They start with the dashboard, or when a run is added."
    return text


@operation("restore", path="", tool="", database="none", as_text=_restored)
def restore(file: Annotated[Path, Field(description="A backup.")]) -> Record:
    """Restore a backup into the data folder, which has to be empty; or put a daily copy of the
    database in place of a damaged one."""
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


def _moved(made: Record) -> str:
    return (
        f"{made['rows']:,} rows were copied and compared. The old database was not changed.\n"
        f"From now on: export SLIMSCOPE_DATABASE_URL='{made['url']}'"
    )


@operation("move", path="", tool="", as_text=_moved)
def move(to: Annotated[str, typer.Option("--to", help="URL of an empty database.")]) -> Record:
    """Move all tables into another database, such as PostgreSQL, or back into a file."""
    rows = move_database(to, lambda name, number: print(f"{name:<18} {number:>10,} rows"))
    return {"rows": rows, "url": make_url(to).render_as_string(hide_password=True)}


@operation("export", path="", tool="", as_text=_written)
def export(
    run: Run,
    file: Target,
    weights: Annotated[bool, Field(description="Include saved models.")] = False,
) -> Record:
    """Write a run that has ended into one file: config, figures, statistics, logs. `slimscope
    import` reads it."""
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
    file: Annotated[Path, Field(description="A file that `slimscope export` wrote.")], actor: Actor
) -> Record:
    """Add a run from a file, under a number of its own."""
    with _bar("Reading") as progress:
        return summary(import_run(file.absolute(), actor, check_row, progress))


@contextmanager
def _bar(title: str) -> Iterator[writing.Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _disk_text(found: Record) -> str:
    parts = [f"{part:<24} {readable_bytes(size):>10}" for part, size in found["bytes"].items()]
    rows = [
        (
            run["id"],
            run["state"],
            readable_bytes(sum(run["bytes"].values())),
            ", ".join(f"{part} {readable_bytes(size)}" for part, size in run["bytes"].items()),
        )
        for run in found["largest"]
    ]
    none = "No run that has ended has been measured yet."
    parts.append(table(("run", "state", "total", "of which"), rows) if rows else none)
    if freeable := found["freeable"]:
        total, largest = readable_bytes(sum(freeable.values())), max(freeable, key=freeable.get)
        parts.append(f"Checkpoints of {count(len(freeable))} that did not succeed: {total}.")
        parts.append(f"The largest: slimscope free {largest} (resuming starts from the beginning).")
    return "\n".join(parts)


@operation("disk", path="", tool="", as_text=_disk_text)
def disk(limit: Annotated[int, Field(ge=1, le=1000, description="Number of runs.")] = 10) -> Record:
    """Show what takes disk space, and what can be freed."""
    measured = [(job, disk_use(job.run)) for job in queries.largest(limit)]
    unfinished = queries.resumable_before(int(time.time() * 1000))
    freeable = {job.run: n for job in unfinished if (n := disk_use(job.run).get(CHECKPOINTS, 0))}
    largest = [{"id": job.run, "state": job.state, "bytes": parts} for job, parts in measured]
    return {"bytes": data_folder_use(), "largest": largest, "freeable": freeable}
