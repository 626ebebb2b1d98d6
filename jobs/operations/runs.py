"""Operations that look at runs: lists, figures, logs and files; with what their kinds know,
everything about a run, and sweeps; and at what a config may name: kinds, models, texts."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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
    return [summary(job) for job in found]


@operation("results")
def run_results(run: Run) -> list[Record]:
    """The figures a run ended with: stage, metric, value, standard error."""
    return results(queries.job(run).id)


@operation("curves", tool="")
def run_curves(run: Run) -> list[Record]:
    """The points of the run's curves: name, step, value, at."""
    return [dict(point._mapping) for point in queries.curve_points(queries.job(run).id)]


@operation("tensors", tool="")
def run_tensors(run: Run) -> list[Record]:
    """The statistics of every tensor at every stage."""
    return tensors(queries.job(run).id)


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
        raise NotFoundError("This file belongs to no artifact of the run.")
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


DIFFERENCES = ("texts", "results", "config", "environment")  # of a comparison, beside the weights


def _run_text(found: Record) -> str:
    job = queries.job(found["id"])
    place = f"place {found['place']} in the queue" if found["place"] else ""
    state = (job.run, job.state, f"{found['progress']:.0%}", job.stage, place)
    lines = ["  ".join(filter(None, state))]
    if others := awaited([job.id]).get(job.id):
        lines.append(f"It waits for {', '.join(f'{x.run}, which is {x.state}' for x in others)}.")
    lines += [job.error_text] if job.error else []
    lines += [*filter(None, [cost_text(job)])]
    lines.append(results_text(found))
    if found["reproduce"]:
        lines.append(comparison_text(found["reproduce"]))
    lines += [f"{a['kind']:<10} {a['path']}  {a['bytes'] / 1e6:.1f} MB" for a in found["artifacts"]]
    return "\n".join(lines)


def results_text(found: Record) -> str:
    """Every figure of a run, by its record."""
    names = stage_labels(found["kind"])
    rows = [
        (
            row["metric"],
            names.get(row["stage"], row["stage"]),
            f"{row['value']:.6g}",
            "" if row["stderr"] is None else f"{row['stderr']:.3g}",
        )
        for row in found["results"]
    ]
    times = {step: s for step, s in found["timings"].items() if step != "peak_bytes"}
    rows += [(f"seconds/{step}", "run", f"{seconds:.6g}", "") for step, seconds in times.items()]
    figures = table(("metric", "stage", "value", "±"), rows)
    kept = found["kept_stage"]
    told = found["kept_reason"] or (f"Kept: {names.get(kept, kept)}" if kept else "")
    return "\n".join(filter(None, (told, figures, *verdicts(decoder_reports(found["id"])))))


def comparison_text(found: Record) -> str:
    """Whether a run and its reproduction are equal, and what differs, by their comparison."""
    parts = [*filter(None, [found["weights"]])]
    parts += [each for name in DIFFERENCES for each in found[name]]
    if found["outcome"] == "open" or not parts:
        return str(found["text"])
    rows = (
        (each["what"], *("–" if each[run] is None else each[run] for run in ("first", "second")))
        for each in parts
    )
    header = ("what differs", found["first"], found["second"])
    return f"{found['text']}\n{table(header, rows)}"


@operation("show", path="/runs/{run}", said=_run_text)
def show_run(run: Run) -> Record:
    """Show a run: its state and place in the queue, progress, config, results, files, and its error
    if it failed."""
    return record(run)


def _sweep_text(found: Record) -> str:
    states = Counter(run["state"] for run in found["runs"])
    counted = ", ".join(f"{n} {state}" for state, n in states.items())
    metrics = list(dict.fromkeys(row["metric"] for row in found["table"]))
    parts = [f"{count(len(found['runs']))}: {counted}"]
    if metrics:
        only = metrics[0] if len(metrics) == 1 else str(PERPLEXITY)
        parts.append(sweep_text(found, only))
    return "\n".join(parts)


def sweep_text(found: Record, metric: str) -> str:
    """Mean and spread of one metric: one line a combination and stage. `NotFoundError` if no run of
    the sweep has measured it."""
    rows = list(_of_metric(found["table"], metric))
    names = stage_labels(found["runs"][0]["kind"])
    fields = [field for field in found["fields"] if field != sweep.SEED]
    lines = (
        (
            *(row["values"][field] for field in fields),
            names.get(row["stage"], row["stage"]),
            f"{row['mean']:.6g}",
            "" if row["spread"] is None else f"{row['spread']:.3g}",
            row["n"],
        )
        for row in rows
    )
    return table((*fields, "stage", metric, "±", "n"), lines)


def _of_metric(rows: Sequence[Mapping[str, Any]], metric: str) -> Iterator[Mapping[str, Any]]:
    """The rows of one metric; raises `NotFoundError` where there are none."""
    found = {row["metric"] for row in rows}
    if metric not in found:
        raise NotFoundError(
            f"No run of this sweep has measured {metric[:40]!r}.",
            "",
            f"There are: {', '.join(sorted(found)) or 'no figures yet'}.",
        )
    yield from (row for row in rows if row["metric"] == metric)


@operation("sweep", said=_sweep_text)
def show_sweep(
    run: Run, metric: Annotated[str, Field(description="Only this one, such as perplexity.")] = ""
) -> Record:
    """Show the sweep a run belongs to: its runs, and mean and sample standard deviation of the
    figures over seeds."""
    found = sweep_record(sweep_of(run))
    return found | ({"table": [*_of_metric(found["table"], metric)]} if metric else {})


def _kinds_text(records: Sequence[Record]) -> str:
    rows = ((kind["name"], kind["title"], ", ".join(kind["presets"])) for kind in records)
    return table(("kind", "what it is", "presets"), rows)


@operation("kinds", database="none", said=_kinds_text)
def list_kinds() -> list[Record]:
    """The kinds of run: title, recipes, presets, and the JSON schema of the config."""
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
    return table(("model", "ready", "what it is", "license"), rows)


@operation("models", database="none", said=_models_text)
def list_models() -> list[Record]:
    """The models that can be chosen: name, title, origin, license, and whether they are set up."""
    return [asdict(entry) for entry in entries()]


@operation("texts", database="none")
def list_texts() -> list[Record]:
    """The texts that can be chosen, what each can be used for, and whether it can be read now."""
    return [asdict(corpus) for corpus in corpora()]
