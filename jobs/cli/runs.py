"""Commands that add runs and follow them: `slimscope submit KIND …`, whose options are drawn from
the kind's config, `slimscope pipeline FILE.yaml`, `slimscope wait` and `--wait`, `slimscope
logs`."""

import inspect
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from backend.errors import ConfigError, NotFoundError
from backend.printable import printable
from backend.queue import scheduling
from backend.queue.actor import Actor
from backend.queue.artifacts import read_log, whole_log
from backend.store import queries
from backend.store.states import TERMINAL
from jobs import pipeline, sweep
from jobs.cli.command import DIFFERENT, NAP_S, escaped, exit_of, follow, me, write
from jobs.fields.types import options
from jobs.kind import Kind, kinds
from jobs.metrics import PERPLEXITY
from jobs.operations.registry import Operation, Record, Run, Runs, operation
from jobs.operations.runs import comparison_text, results_text, sweep_text
from jobs.record import cost_text, record, summary, sweep_record
from jobs.reproduction import reproduced
from jobs.wording import count

STDIN = "-"


def _ended_code(found: Record) -> int:
    """Of the first run that did not succeed, or of a comparison."""
    if found.get("outcome") == "different":
        return DIFFERENT
    runs = found.get("runs") or [queries.job(found.get("second") or found["id"])]
    states = (run["state"] if isinstance(run, dict) else run.state for run in runs)
    return next(filter(None, map(exit_of, states)), 0)


def _ended_text(found: Record) -> str:
    if "outcome" in found:
        return comparison_text(found)
    runs = found.get("runs") or [found]
    try:
        text = sweep_text(found, str(PERPLEXITY)) if "runs" in found else results_text(found)
    except NotFoundError as error:  # no run of the sweep came so far
        text = str(error)
    errors = (f"{run['id']}: {queries.job(run['id']).error_text}" for run in runs if run["error"])
    return "\n".join([text, *errors])


@operation("wait", path="", tool="", said=_ended_text, exit_code=_ended_code)
def wait_for(runs: Runs) -> Record:
    """Follow runs to their ends. Answers with the record of the run, of all as a sweep, or with the
    comparison of a run and the one it repeats."""
    ended = [follow(run) for run in runs]
    if len(ended) > 1:
        return sweep_record(ended)
    comparison = reproduced(ended[0])
    return comparison.record() if comparison else record(ended[0].run)


@operation("logs", path="", tool="", said=lambda _: "")
def logs(
    run: Run,
    on: Annotated[bool, typer.Option("-f", "--follow", help="Print until it ends.")] = False,
    whole: Annotated[bool, typer.Option("--all", help="Of all attempts.")] = False,
) -> Record:
    """Print the log of a run's newest attempt."""
    if whole:
        text = whole_log(run, queries.job(run).attempts_made).decode(errors="replace")
        write(text, end="")
        return {"id": queries.job(run).run, "text": text}
    attempt, offset, parts = 0, None, list[str]()
    while True:
        job = queries.job(run)
        if job.attempts_made != attempt:
            attempt, offset = job.attempts_made, 0
        text, _, offset = read_log(job.run, attempt, offset)
        write(text, end="")
        parts.append(text)
        if not on or (job.state in TERMINAL and not text):
            return {"id": job.run, "text": "".join(parts)}
        time.sleep(NAP_S)


@operation(
    "submit",
    path="",
    tool="",
    below=lambda: {name: _operation(kind) for name, kind in kinds().items()},
)
def submit() -> None:
    """Add a run to the queue."""


def _operation(kind: Kind) -> Operation:
    """Queues runs of a kind; its parameters are the fields of the kind's config."""

    def queue(**values: Any) -> Record | list[Record]:
        name, priority = values.pop("name"), values.pop("priority")
        preset = kind.preset(values.pop("preset"))
        pairs = [text.partition("=") for text in values.pop("sweep") or ()]
        swept = sweep.read(kind.name, [(field, chosen) for field, _, chosen in pairs])
        values = {**preset, **{k: v for k, v in values.items() if v is not None}}
        planned = sweep.plan(kind.name, values, swept)
        for warning in planned.warnings:
            print(f"slimscope: Warning: {printable(warning)}", file=sys.stderr)
        jobs = planned.queue(kind.name, me(), name, priority)
        records = [summary(job) | {"warnings": planned.warnings} for job in jobs]
        return records[0] if len(records) == 1 else records

    queue.__signature__ = inspect.Signature(list(_options(kind)))  # type: ignore[attr-defined]
    queue.__doc__ = kind.summary
    return Operation(name=kind.name, function=queue, waits=True, said=_queued)


def _queued(answer: Record | list[Record]) -> str:
    runs = answer if isinstance(answer, list) else [answer]
    first = queries.job(runs[0]["id"])
    place, cost = scheduling.status().position(first.id) or 1, cost_text(first)
    if len(runs) == 1:
        return f"{first.run} is queued, place {place}. {cost}".strip()
    queued = (
        f"{first.run} to {runs[-1]['id']} are queued, {count(len(runs))} from place {place} on."
    )
    return f"{queued} Each: {cost}" if cost else queued


def _options(kind: Kind) -> Iterator[inspect.Parameter]:
    """One keyword option for each field; None means: not given."""
    for name, info in kind.config.model_fields.items():
        choices = " | ".join(options(info.annotation))
        about = escaped(f"{info.title}. {info.description} {choices} (default {info.default})")
        flag = name.replace("_", "-")
        flag = f"--{flag}/--no-{flag}" if info.annotation is bool else f"--{flag}"
        simple = info.annotation if info.annotation in (bool, int, float) else str
        yield _option(name, simple | None, None, typer.Option(flag, help=about))
    recipes, presets = ", ".join(kind.recipes), ", ".join(kind.presets) or "none"
    about = f"One of: {recipes}; or: {presets}; or both, with a comma." if recipes else presets
    yield _option("preset", str, "", typer.Option(help=about))
    swept = "FIELD=VALUES: a run for each of several values, as in seed=0..2 or pattern=2:4,70%."
    yield _option("sweep", list[str] | None, None, typer.Option("--sweep", help=swept))
    yield _option("name", str, "", typer.Option(help="A name of your own for the run."))
    yield _option("priority", int, 0, typer.Option(help="Higher starts earlier."))


def _option(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _queued_code(answer: str | list[Record]) -> int:
    """Of the first run that has ended without success; 0 where they have only been queued."""
    runs = [] if isinstance(answer, str) else [queries.job(run["id"]) for run in answer]
    return next((code for job in runs if job.state in TERMINAL and (code := exit_of(job.state))), 0)


@operation(
    "pipeline",
    path="",
    tool="",
    exit_code=_queued_code,
    said=lambda answer: answer.rstrip() if isinstance(answer, str) else "",
)
def queue_pipeline(
    actor: Actor,
    file: Annotated[str, typer.Argument(help="A YAML file; - reads standard input.")] = "",
    preset: Annotated[
        str, typer.Option(help=f"One of: {', '.join(map(repr, pipeline.PRESETS))}.")
    ] = "",
    model: Annotated[str, typer.Option(help="Of the preset; a file names its own.")] = "",
    show: Annotated[bool, typer.Option("--show", help="Print the YAML and queue nothing.")] = False,
    priority: Annotated[int, typer.Option(help="Higher starts earlier.")] = 0,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the runs to their ends, or to a failure.")
    ] = False,
) -> str | list[Record]:
    """Queue a pipeline: each run waits for the one before, and works on what it has saved."""
    text = _source(file, preset, model)
    if show:
        return text
    jobs = pipeline.queue(pipeline.read(text), actor, priority=priority)
    write(f"Queued: {' → '.join(job.run for job in jobs)}.")
    for job in jobs if wait else ():
        if exit_of(follow(job.run).state):
            write(f"The others wait until {job.run} has succeeded: slimscope resume {job.run}")
            break
    return [summary(queries.job(job.id)) for job in jobs]


def _source(file: str, preset: str, model: str) -> str:
    """The text of a preset, or of a file. Raises ConfigError: neither, both, or a model for a file;
    the file cannot be read."""
    if file and (preset or model):
        raise ConfigError(
            "A file names its own steps and model.", "", "Leave out --preset and --model.", "file"
        )
    if preset:
        return pipeline.preset(preset, model)
    if not file:
        raise ConfigError(
            "No pipeline is named.", "", "Name a YAML file, or a preset with --preset.", "file"
        )
    try:
        return sys.stdin.read() if file == STDIN else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read.", f"{error}.", "", "file") from error
