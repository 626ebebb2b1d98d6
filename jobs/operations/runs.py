"""Operations that read: runs with their results, logs and files, sweeps, and the kinds, models and
texts that a config may name."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from backend.errors import ConfigError, NotFoundError
from backend.models.sources.catalog import entries
from backend.queue.actor import Actor
from backend.queue.artifacts import read_log
from backend.queue.permissions import require_host
from backend.queue.scheduling import awaited
from backend.settings import settings
from backend.store import queries
from backend.store.copies import has_database
from backend.store.states import State
from backend.store.tables import Job
from backend.text.corpora import corpora
from jobs import sweep
from jobs.benchmark.report import decoder_reports, verdicts
from jobs.kind import kinds, stage_labels
from jobs.metrics import PERPLEXITY
from jobs.operations.registry import Record, Run, operation
from jobs.record import cost_text, record, results, summary, sweep_record, tensors
from jobs.wording import count, table

LOG_BYTES = 1_000_000  # maximum part of a log in one response
FIRST_STEP = "Try: slimscope submit sds --model toy --wait"

Limit = Annotated[int, Field(ge=1, le=500, description="Maximum number of runs.")]


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


@operation("list", path="/runs", tool="runs", database="optional", as_text=runs_text)
def list_runs(
    state: State | None = None, kind: str | None = None, limit: Limit = 50
) -> list[Record]:
    """List runs, newest first."""
    jobs = queries.jobs([state] if state else None, kind, limit) if has_database() else []
    return [summary(job) for job in jobs]


@operation("results")
def run_results(
    run: Run,
    of: Annotated[
        Literal["stages", "curves", "tensors"],
        Field(description="Final metrics, points of curves, or statistics of weight tensors."),
    ] = "stages",
) -> list[Record]:
    """Return what a run has measured: metrics of every stage, curves, or tensors."""
    job_id = queries.job(run).id
    if of == "curves":
        return [dict(point._mapping) for point in queries.curve_points(job_id)]
    return tensors(job_id) if of == "tensors" else results(job_id)


@operation("log", command=False)
def run_log(run: Run, attempt: int = 0, after: int = 0) -> Record:
    """Return the log of an attempt (default: the newest) from byte `after` on. To follow it, pass
    the returned `end` as `after` until the run has ended and no text is left."""
    job = queries.job(run)
    attempt = attempt or job.attempts_made
    text, start, end = read_log(job.run, attempt, after, LOG_BYTES)
    return {"attempt": attempt, "text": text, "start": start, "end": end, "state": job.state}


@operation("file", access="host", action="download files", tool="", command=False)
def download_file(run: Run, path: str, actor: Actor) -> Path:
    """Download a file of the run. `path` is listed in the `artifacts` of the run."""
    require_host(actor, "download files")
    return artifact_file(run, path)


def artifact_file(run: str, path: str) -> Path:
    """Return the location of an artifact file from its path below the artifact folder. Raises
    `NotFoundError` if it is missing or belongs to no artifact of the run."""
    root = settings().artifacts.resolve()
    file = (root / path).resolve()
    folders = [(root / a.path).resolve() for a in queries.artifacts(run)]
    if not any(file.is_relative_to(folder) for folder in folders):
        raise NotFoundError("This file does not belong to an artifact of the run.")
    if not os.path.isfile(file):  # noqa: PTH113 - accepts any name
        raise NotFoundError("There is no such file.", "It was moved or deleted.")
    return file


def sweep_of(run: str) -> list[Job]:
    """Return the runs of the sweep that contains `run`. Raises `ConfigError` if it is a single
    run."""
    jobs = queries.sweep(run)
    if not jobs:
        raise ConfigError(
            f"{queries.job(run).run} is not part of a sweep.", "It was submitted alone."
        )
    return jobs


DIFFERENCES = ("texts", "results", "config", "environment")  # fields of a comparison


def _run_text(result: Record) -> str:
    job = queries.job(result["id"])
    position = f"place {result['place']} in the queue" if result["place"] else ""
    state = (job.run, job.state, f"{result['progress']:.0%}", job.stage, position)
    lines = ["  ".join(filter(None, state))]
    if awaited_runs := awaited([job.id]).get(job.id):
        waiting = ", ".join(f"{job.run} ({job.state})" for job in awaited_runs)
        lines.append(f"It waits for {waiting}.")
    lines += [job.error_text] if job.error else []
    lines += [*filter(None, [cost_text(job)])]
    lines.append(results_text(result))
    if result["reproduce"]:
        lines.append(comparison_text(result["reproduce"]))
    lines += [
        f"{a['kind']:<10} {a['path']}  {a['bytes'] / 1e6:.1f} MB" for a in result["artifacts"]
    ]
    return "\n".join(lines)


def results_text(run_record: Record) -> str:
    """Format all figures of a run's record as text."""
    labels = stage_labels(run_record["kind"])
    rows = [
        (
            row["metric"],
            labels.get(row["stage"], row["stage"]),
            f"{row['value']:.6g}",
            "" if row["stderr"] is None else f"{row['stderr']:.3g}",
        )
        for row in run_record["results"]
    ]
    step_times = {step: s for step, s in run_record["timings"].items() if step != "peak_bytes"}
    rows += [
        (f"seconds/{step}", "run", f"{seconds:.6g}", "") for step, seconds in step_times.items()
    ]
    figures = table(("metric", "stage", "value", "±"), rows)
    kept_stage = run_record["kept_stage"]
    reason = run_record["kept_reason"] or (
        f"Kept: {labels.get(kept_stage, kept_stage)}" if kept_stage else ""
    )
    return "\n".join(filter(None, (reason, figures, *verdicts(decoder_reports(run_record["id"])))))


def comparison_text(comparison: Record) -> str:
    """Format the comparison of a run with its reproduction: the outcome and all differences."""
    differences = [*filter(None, [comparison["weights"]])]
    for name in DIFFERENCES:
        differences += comparison[name]
    if comparison["outcome"] == "open" or not differences:
        return str(comparison["text"])
    rows = [
        [x["what"], *("–" if value is None else value for value in (x["first"], x["second"]))]
        for x in differences
    ]
    header = ("difference", comparison["first"], comparison["second"])
    return f"{comparison['text']}\n{table(header, rows)}"


def _sweep_text(result: Record) -> str:
    states = Counter(run["state"] for run in result["runs"])
    counted = ", ".join(f"{n} {state}" for state, n in states.items())
    metrics = list(dict.fromkeys(row["metric"] for row in result["table"]))
    parts = [f"{count(len(result['runs']))}: {counted}"]
    if metrics:
        metric = metrics[0] if len(metrics) == 1 else str(PERPLEXITY)
        parts.append(sweep_text(result, metric))
    return "\n".join(parts)


def _shown_text(result: Record) -> str:
    return _sweep_text(result) if "runs" in result else _run_text(result)


def sweep_text(sweep_data: Record, metric: str) -> str:
    """Format mean and spread of one metric, one line per combination and stage. Raises
    `NotFoundError` if no run of the sweep has measured it."""
    rows = list(_of_metric(sweep_data["table"], metric))
    labels = stage_labels(sweep_data["runs"][0]["kind"])
    fields = [field for field in sweep_data["fields"] if field != sweep.SEED]
    cells = (
        (
            *(row["values"][field] for field in fields),
            labels.get(row["stage"], row["stage"]),
            f"{row['mean']:.6g}",
            "" if row["spread"] is None else f"{row['spread']:.3g}",
            row["n"],
        )
        for row in rows
    )
    return table((*fields, "stage", metric, "±", "n"), cells)


def _of_metric(rows: Sequence[Mapping[str, Any]], metric: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of one metric. Raises `NotFoundError` if there are none."""
    metrics = {row["metric"] for row in rows}
    if metric not in metrics:
        raise NotFoundError(
            f"No run of this sweep has measured {metric[:40]!r}.",
            "",
            f"Choose: {', '.join(sorted(metrics))}." if metrics else "There are no figures yet.",
        )
    yield from (row for row in rows if row["metric"] == metric)


@operation("show", path="/runs/{run}", as_text=_shown_text)
def show_run(
    run: Run,
    sweep: Annotated[
        bool, Field(description="Show its sweep: mean and standard deviation over seeds.")
    ] = False,
    metric: Annotated[str, Field(description="Show only this metric of the sweep.")] = "",
) -> Record:
    """Show a run: state, position in the queue, progress, config, results, files, and the error if
    it failed. Or show the sweep that contains it: all its runs, and the figures over seeds."""
    if not sweep:
        return record(run)
    result = sweep_record(sweep_of(run))
    return result | ({"table": [*_of_metric(result["table"], metric)]} if metric else {})


def _kinds_text(records: Sequence[Record]) -> str:
    rows = ((kind["name"], kind["title"], ", ".join(kind["presets"])) for kind in records)
    return table(("kind", "title", "presets"), rows)


@operation("kinds", database="none", as_text=_kinds_text)
def list_kinds() -> list[Record]:
    """List the kinds of run: title, recipes, presets, and the JSON schema of the config."""
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


def _models_text(records: Sequence[Record]) -> str:
    rows = (
        (
            entry["name"],
            "yes" if entry["ready"] else "refused" if entry["refused"] else "no",
            entry["refused"] or entry["title"],
            entry["license"],
        )
        for entry in records
    )
    return table(("model", "ready", "title", "license"), rows)


@operation("models", database="none", as_text=_models_text)
def list_models() -> list[Record]:
    """List the available models: name, title, origin, license, and if they are set up."""
    return [asdict(entry) for entry in entries()]


@operation("texts", database="none")
def list_texts() -> list[Record]:
    """List the available texts, their possible uses, and if they are ready."""
    return [asdict(corpus) for corpus in corpora()]
