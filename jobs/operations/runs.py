"""Operations that look at runs, as far as the database and the folders tell."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from backend.errors import ConfigError, NotFoundError
from backend.queue.actor import Actor
from backend.queue.artifacts import read_log
from backend.queue.permissions import require_host
from backend.settings import settings
from backend.store import queries
from backend.store.copies import has_database
from backend.store.states import State
from backend.store.tables import Job
from jobs import record
from jobs.operations.registry import Record, Run, operation
from jobs.wording import table

LOG_BYTES = 1_000_000  # of one answer, at most
FIRST_STEP = "Try: slimscope submit sds --model toy --wait"

Limit = Annotated[int, Field(ge=1, le=500, description="Number of runs.")]


def runs_text(records: Sequence[Record]) -> str:
    rows = (
        (
            run["id"],
            "damaged" if run["damaged"] else run["state"],
            f"{run['progress']:.0%}",
            run["config"].get("model", ""),
            run["name"],
        )
        for run in records
    )
    none = f"No runs in {settings().root}. {FIRST_STEP}"
    return table(("run", "state", "progress", "model", "name"), rows) if records else none


@operation("list", path="/runs", tool="runs", database="optional", said=runs_text)
def list_runs(
    state: State | None = None, kind: str | None = None, limit: Limit = 50
) -> list[Record]:
    """List runs, the newest first."""
    found = queries.jobs([state] if state else None, kind, limit) if has_database() else []
    return [record.summary(job) for job in found]


@operation("results")
def run_results(run: Run) -> list[Record]:
    """The figures a run ended with: stage, metric, value, standard error."""
    return record.results(queries.job(run).id)


@operation("curves", tool="")
def run_curves(run: Run) -> list[Record]:
    """The points of the run's curves: name, step, value, at."""
    return [dict(point._mapping) for point in queries.curve_points(queries.job(run).id)]


@operation("tensors", tool="")
def run_tensors(run: Run) -> list[Record]:
    """The statistics of every tensor at every stage."""
    return record.tensors(queries.job(run).id)


@operation("log", command=False)
def run_log(run: Run, attempt: int = 0, after: int = 0) -> Record:
    """The log of a run from byte `after` on, of its newest attempt or another. To follow it, ask
    again with the `end` of the answer, until the run has ended and there is no more text."""
    job = queries.job(run)
    attempt = attempt or job.attempts_made
    text, start, end = read_log(job.run, attempt, after, LOG_BYTES)
    return {"attempt": attempt, "text": text, "start": start, "end": end, "state": job.state}


@operation("file", who="host", action="download files", tool="", command=False)
def download_file(run: Run, path: str, actor: Actor) -> Path:
    """Download a file that the run left, by its path among its `artifacts`."""
    require_host(actor, "download files")
    return artifact_file(run, path)


def artifact_file(run: str, path: str) -> Path:
    """One file of what a run left, by its path below the artifact folder. Raises NotFoundError: it
    is not there, or belongs to no artifact of the run."""
    root = settings().artifacts.resolve()
    file = (root / path).resolve()
    folders = [(root / a.path).resolve() for a in queries.artifacts(run)]
    if not any(file.is_relative_to(folder) for folder in folders):
        raise NotFoundError("This file belongs to no artefact of the run.")
    if not os.path.isfile(file):  # noqa: PTH113 - any name
        raise NotFoundError("There is no such file.", "It was moved or deleted.")
    return file


def sweep_of(run: str) -> list[Job]:
    """The runs of the sweep that `run` belongs to. Raises ConfigError: it was added alone."""
    jobs = queries.sweep(run)
    if not jobs:
        raise ConfigError(
            f"{queries.job(run).run} is not part of a sweep.", "It was submitted alone."
        )
    return jobs
