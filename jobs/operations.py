"""What can be asked of the queue and done to it, once for the command line, the HTTP API, the MCP
server and the buttons. All answers are plain data; who may do what is decided by the queue."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from backend.errors import ConfigError, NotFoundError
from backend.models.sources.catalogue import entries
from backend.queue import labels, removal, retention, service
from backend.queue.folders import read_log
from backend.queue.roles import Actor
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from backend.text.corpora import corpora
from jobs import pipeline as pipelines
from jobs import record, reproduction, submit
from jobs import sweep as sweeps
from jobs.generate import arena
from jobs.generate.arena import leaderboard, names_of
from jobs.generate.transcript import read_transcript
from jobs.kind import kind_named, kinds

MAX_RUNS = 500
MOST_LOG = 1_000_000  # bytes of a log in one answer
MOST_FILES = 1000  # of one artefact

Record = dict[str, Any]
Limit = Annotated[int, Field(ge=1, le=MAX_RUNS)]


# reading ------------------------------------------------------------------------------------------


def list_kinds() -> list[Record]:
    """The kinds of run: title, presets, and the JSON schema of the config."""
    return [
        {
            "name": kind.name,
            "title": kind.title,
            "summary": kind.summary,
            "presets": {name: dict(values) for name, values in kind.presets.items()},
            "recipes": {name: dict(values) for name, values in kind.recipes.items()},
            "notes": dict(kind.notes),
            "schema": kind.config.model_json_schema(),
        }
        for kind in kinds().values()
    ]


def list_models() -> list[Record]:
    """The models that can be chosen: name, title, origin, licence, and whether they are set up."""
    return [asdict(entry) for entry in entries()]


def list_texts() -> list[Record]:
    """The texts that can be chosen, what each can be used for, and whether it can be read now."""
    return [asdict(corpus) for corpus in corpora()]


def list_runs(
    state: State | None = None, kind: str | None = None, limit: Limit = 50
) -> list[Record]:
    """Runs, the newest first."""
    return [record.summary(job) for job in queries.jobs([state] if state else None, kind, limit)]


def run_status(run: str) -> Record:
    """State, stage, progress and config of a run, such as sds-0042, and its error if it failed."""
    job = queries.job(run)
    return record.summary(job) | {"place": queries.status().position(job.id)}


def show_run(run: str) -> Record:
    """Everything that is known of a run; the same as `slimscope show RUN --json`."""
    return record.record(run)


def run_results(run: str) -> list[Record]:
    """The figures a run ended with: stage, metric, value, standard error."""
    return record.results(queries.job(run).id)


def run_curves(run: str) -> list[Record]:
    """The points of the run's curves: name, step, value, at."""
    return queries.curve_rows(queries.job(run).id)


def run_tensors(run: str) -> list[Record]:
    """The statistics of every tensor at every stage."""
    return record.tensors(queries.job(run).id)


def run_log(run: str, attempt: int = 0, after: int = 0) -> Record:
    """The log of a run from byte `after` on, of its newest attempt or another. To follow it, ask
    again with the `end` of the answer, until the run has ended and there is no more text."""
    job = queries.job(run)
    attempt = attempt or job.attempts_made
    text, start, end = read_log(job.run, attempt, after, MOST_LOG)
    return {"attempt": attempt, "text": text, "start": start, "end": end, "state": job.state}


def run_answers(run: str) -> list[Record]:
    """The texts of a run of the playground, one for each model: text, tokens, tokens per second,
    accepted tokens per step, and how it ended ("" while it is written)."""
    job = queries.job(run)
    written = [read_transcript(job.run, n) for n, _ in enumerate(names_of(job), 1)]
    return [
        {"model": name, "text": text.text, "tokens": len(text.tokens), "end": text.end,
         "tokens_per_second": text.speed, "tokens_per_step": text.accepted}
        for name, text in zip(names_of(job), written, strict=True)
    ]  # fmt: skip


def show_leaderboard() -> Record:
    """The ratings of models by blind votes in the playground, the best first."""
    return asdict(leaderboard())


def run_artifacts(run: str) -> list[Record]:
    """What a run left: kind, path below the artefact folder, size, sha256, and the files of each
    folder with their sizes in bytes."""
    return [
        {"kind": a.kind, "path": a.path, "bytes": a.bytes, "sha256": a.sha256,
         "files": _files(settings().artifacts / a.path)}
        for a in queries.artifacts(run)
    ]  # fmt: skip


def _files(path: Path) -> dict[str, int]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {
        str(file.relative_to(settings().artifacts)): file.stat().st_size
        for file in files[:MOST_FILES]
        if file.is_file()
    }


def artifact_file(run: str, path: str) -> Path:
    """One file of what a run left, by its path below the artefact folder.

    Raises:
        NotFoundError: it is not there, or belongs to no artefact of the run.
    """
    root = settings().artifacts.resolve()
    file = (root / path).resolve()
    folders = [(root / a.path).resolve() for a in queries.artifacts(run)]
    if not any(file.is_relative_to(folder) for folder in folders):
        raise NotFoundError("This file belongs to no artefact of the run.")
    if not os.path.isfile(file):  # noqa: PTH113 - any name
        raise NotFoundError("There is no such file.", "It was moved or deleted.")
    return file


def show_sweep(run: str) -> Record:
    """The sweep a run belongs to: its runs, and mean and standard deviation of every figure over
    seeds."""
    return record.sweep_record(sweep_of(run))


def sweep_of(run: str) -> list[Job]:
    """The runs of the sweep that `run` belongs to.

    Raises:
        ConfigError: it was added alone.
    """
    jobs = queries.sweep(run)
    if not jobs:
        what, why = f"{queries.job(run).run} is not part of a sweep.", "It was submitted alone."
        raise ConfigError(what, why)
    return jobs


# writing ------------------------------------------------------------------------------------------


def submit_run(
    kind: str,
    config: Mapping[str, Any],
    actor: Actor,
    preset: str = "",
    name: str = "",
    priority: int = 0,
) -> Record:
    """Add a run to the queue. The config holds what differs from the preset or the defaults."""
    values = {**kind_named(kind).preset(preset), **config}
    job = submit.submit(kind, values, actor, name=name, priority=priority)
    return run_status(job.run)


def submit_sweep(
    kind: str,
    config: Mapping[str, Any],
    sweep: Mapping[str, str],
    actor: Actor,
    preset: str = "",
    name: str = "",
    priority: int = 0,
) -> list[Record]:
    """Add a run for each combination of values, such as {"pattern": "2:4,70%", "seed": "0..2"}: all
    or none."""
    values = {**kind_named(kind).preset(preset), **config}
    swept = sweeps.read(kind, sweep.items())
    jobs = sweeps.queue(kind, values, swept, actor, name=name, priority=priority)
    return [record.summary(job) for job in jobs]


def submit_pipeline(text: str, actor: Actor, priority: int = 0) -> list[Record]:
    """Add several runs, each on what the one before will save; the text is a pipeline in YAML, such
    as {"model": "toy", "steps": [{"sds": {"pattern": "2:4"}}, {"dlqat": {"bits": 4}}]}."""
    jobs = pipelines.queue(pipelines.read(text), actor, priority=priority)
    return [record.summary(job) for job in jobs]


def vote(run: str, choice: int, actor: Actor) -> list[Record]:
    """Vote for an answer of a run of the playground: the number of the better one, from 1; 0: as
    good as each other; -1: all bad. Answers with the texts and their models."""
    arena.vote(queries.job(run), choice, actor)
    return run_answers(run)


def cancel_run(run: str, actor: Actor) -> Record:
    """Ask a run to stop at its next safe point; asked twice, it is killed. A run that has
    ended cannot be cancelled."""
    return cancel_runs([run], actor)[0]


def cancel_runs(runs: Iterable[str], actor: Actor) -> list[Record]:
    """Ask runs to stop, all at once; see `cancel_run`."""
    names = [queries.job(run).run for run in runs]
    service.cancel_all(names, actor)
    return [record.summary(queries.job(name)) for name in names]


def resume_run(run: str, actor: Actor) -> Record:
    """Queue a failed, cancelled or lost run again, from its last checkpoint."""
    return record.summary(service.resume(run, actor))


def resume_runs(runs: Iterable[str], actor: Actor) -> list[Record]:
    """Queue again those of the runs that failed, were cancelled or lost, all at once."""
    return [record.summary(job) for job in service.resume_all(runs, actor)]


def run_next(run: str, actor: Actor) -> Record:
    """Move a queued run to the front of the queue."""
    return record.summary(service.run_next(run, actor))


def free_space(run: str, actor: Actor) -> Record:
    """Delete the checkpoints of a run that has ended: resuming it then starts from the beginning.
    Answers with the bytes that were freed."""
    freed = retention.free_space(run, actor)
    return {"id": queries.job(run).run, "freed_bytes": freed}


def delete_run(run: str, actor: Actor) -> Record:
    """Delete a run that has ended. It can be restored for a day; then its files and figures are
    purged."""
    delete_runs([run], actor)
    return record.summary(queries.job(run))


def delete_runs(runs: Iterable[str], actor: Actor) -> list[Record]:
    """Delete runs that have ended, all or none; see `delete_run`."""
    return [record.summary(job) for job in removal.remove(runs, actor)]


def restore_run(run: str, actor: Actor) -> Record:
    """Undo the deletion of a run."""
    restore_runs([run], actor)
    return record.summary(queries.job(run))


def restore_runs(runs: Iterable[str], actor: Actor) -> list[Record]:
    """Undo the deletion of runs."""
    return [record.summary(job) for job in removal.restore(runs, actor)]


def purge_runs(runs: Iterable[str], actor: Actor) -> int:
    """Delete the files and figures of deleted runs now; the bytes that were freed."""
    return removal.purge(runs, actor)


def archive_runs(runs: Iterable[str], actor: Actor, back: bool = False) -> list[Record]:
    """Take runs out of the usual lists, or put them back."""
    return [record.summary(job) for job in removal.archive(runs, actor, back=back)]


def rename_run(run: str, name: str, actor: Actor) -> Record:
    """Give a run another name."""
    labels.rename(run, name, actor)
    return record.summary(queries.job(run))


def reproduce_run(run: str, actor: Actor) -> Record:
    """Queue a new run with the frozen config and settings of an old one, to be compared with it."""
    return record.summary(reproduction.reproduce(run, actor))
