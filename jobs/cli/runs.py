"""Commands that submit and follow runs: `slimscope submit KIND …` with options from the kind's
config, `slimscope pipeline FILE.yaml`, `slimscope wait` (and `--wait`), `slimscope logs`."""

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
from backend.queue.artifacts import full_log, read_log
from backend.store import queries
from backend.store.states import TERMINAL
from jobs import pipeline, sweep
from jobs.cli.app import DIFFERENT, POLL_S, current_actor, escaped, exit_of, follow, write
from jobs.fields.types import options
from jobs.kind import Kind, kinds
from jobs.metrics import PERPLEXITY
from jobs.operations.registry import Operation, Record, Run, Runs, operation
from jobs.operations.runs import comparison_text, results_text, sweep_text
from jobs.record import cost_text, record, size_text, summary, sweep_record
from jobs.reproduction import reproduced
from jobs.wording import count

STDIN = "-"


def _wait_exit_code(result: Record) -> int:
    """Return the exit code of the first run that did not succeed, or of a comparison."""
    if result.get("outcome") == "different":
        return DIFFERENT
    runs = result.get("runs") or [queries.job(result.get("second") or result["id"])]
    states = (run["state"] if isinstance(run, dict) else run.state for run in runs)
    return next(filter(None, map(exit_of, states)), 0)


def _wait_text(result: Record) -> str:
    if "outcome" in result:
        return comparison_text(result)
    runs = result.get("runs") or [result]
    try:
        text = sweep_text(result, str(PERPLEXITY)) if "runs" in result else results_text(result)
    except NotFoundError as error:  # no run of the sweep measured perplexity
        text = str(error)
    errors = (f"{run['id']}: {queries.job(run['id']).error_text}" for run in runs if run["error"])
    return "\n".join([text, *errors])


@operation("wait", path="", tool="", as_text=_wait_text, exit_code=_wait_exit_code)
def wait_for(runs: Runs) -> Record:
    """Follow runs until they end. Returns the record of the run, a sweep record for several runs,
    or the comparison for a reproduction."""
    ended = [follow(run) for run in runs]
    if len(ended) > 1:
        return sweep_record(ended)
    comparison = reproduced(ended[0])
    return comparison.record() if comparison else record(ended[0].run)


@operation("logs", path="", tool="", as_text=lambda _: "")
def logs(
    run: Run,
    follow_log: Annotated[
        bool, typer.Option("-f", "--follow", help="Follow the log until the run ends.")
    ] = False,
    all_attempts: Annotated[
        bool, typer.Option("--all", help="Print the logs of all attempts.")
    ] = False,
) -> Record:
    """Print the log of a run's newest attempt."""
    if all_attempts:
        text = full_log(run, queries.job(run).attempts_made).decode(errors="replace")
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
        if not follow_log or (job.state in TERMINAL and not text):
            return {"id": job.run, "text": "".join(parts)}
        time.sleep(POLL_S)


@operation(
    "submit",
    path="",
    tool="",
    subcommands=lambda: {name: _operation(kind) for name, kind in kinds().items()},
)
def submit() -> None:
    """Add a run to the queue."""


def _operation(kind: Kind) -> Operation:
    """Return the operation that queues runs of a kind. Its parameters are the config fields."""

    def queue(**values: Any) -> Record | list[Record]:
        name, priority = values.pop("name"), values.pop("priority")
        preset = kind.preset(values.pop("preset"))
        pairs = [text.partition("=") for text in values.pop("sweep") or ()]
        sweep_values = sweep.read(kind.name, [(field, texts) for field, _, texts in pairs])
        values = {**preset, **{k: v for k, v in values.items() if v is not None}}
        planned = sweep.plan(kind.name, values, sweep_values)
        for warning in planned.warnings:
            print(f"slimscope: Warning: {printable(warning)}", file=sys.stderr)
        jobs = planned.queue(kind.name, current_actor(), name, priority)
        records = [summary(job) | {"warnings": planned.warnings} for job in jobs]
        return records[0] if len(records) == 1 else records

    queue.__signature__ = inspect.Signature(list(_options(kind)))  # type: ignore[attr-defined]
    queue.__doc__ = kind.summary
    return Operation(name=kind.name, function=queue, adds_runs=True, as_text=_queue_text)


def _queue_text(result: Record | list[Record]) -> str:
    runs = result if isinstance(result, list) else [result]
    first = queries.job(runs[0]["id"])
    position = scheduling.status().position(first.id) or 1
    cost = f"{cost_text(first)} {size_text(first)}".strip()
    if len(runs) == 1:
        return f"{first.run} is queued at position {position}. {cost}".strip()
    queued = (
        f"{first.run} to {runs[-1]['id']} are queued: {count(len(runs))} from position {position}."
    )
    return f"{queued} Each: {cost}" if cost else queued


def _options(kind: Kind) -> Iterator[inspect.Parameter]:
    """Yield a keyword option for each config field; None means not given."""
    for name, info in kind.config.model_fields.items():
        choices = " | ".join(options(info.annotation))
        help_text = escaped(f"{info.title}. {info.description} {choices} (default {info.default})")
        flag = name.replace("_", "-")
        flag = f"--{flag}/--no-{flag}" if info.annotation is bool else f"--{flag}"
        option_type = info.annotation if info.annotation in (bool, int, float) else str
        yield _option(name, option_type | None, None, typer.Option(flag, help=help_text))
    recipes, presets = ", ".join(kind.recipes), ", ".join(kind.presets) or "none"
    help_text = f"Recipe ({recipes}), preset ({presets}), or both, separated by a comma."
    help_text = help_text if recipes else f"One of: {presets}."
    yield _option("preset", str, "", typer.Option(help=help_text))
    sweep_help = "FIELD=VALUES: one run per value, such as seed=0..2 or pattern=2:4,70%."
    yield _option("sweep", list[str] | None, None, typer.Option("--sweep", help=sweep_help))
    yield _option("name", str, "", typer.Option(help="Name of the run."))
    yield _option("priority", int, 0, typer.Option(help="Higher priorities start first."))


def _option(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _queue_exit_code(result: str | list[Record]) -> int:
    """Return the exit code of the first run that ended without success; 0 for queued runs."""
    runs = [] if isinstance(result, str) else [queries.job(run["id"]) for run in result]
    return next((code for job in runs if job.state in TERMINAL and (code := exit_of(job.state))), 0)


@operation(
    "pipeline",
    path="",
    tool="",
    exit_code=_queue_exit_code,
    as_text=lambda result: result.rstrip() if isinstance(result, str) else "",
)
def queue_pipeline(
    actor: Actor,
    file: Annotated[str, typer.Argument(help="YAML file; - for standard input.")] = "",
    preset: Annotated[
        str, typer.Option(help=f"One of: {', '.join(map(repr, pipeline.PRESETS))}.")
    ] = "",
    model: Annotated[str, typer.Option(help="Model for the preset; files name their own.")] = "",
    show: Annotated[
        bool, typer.Option("--show", help="Print the YAML without queueing it.")
    ] = False,
    priority: Annotated[int, typer.Option(help="Higher priorities start first.")] = 0,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the runs until they end or one fails.")
    ] = False,
) -> str | list[Record]:
    """Queue a pipeline: each run waits for the previous one and uses its output."""
    text = _source(file, preset, model)
    if show:
        return text
    jobs = pipeline.queue(pipeline.read(text), actor, priority=priority)
    write(f"Queued: {' → '.join(job.run for job in jobs)}.")
    for job in jobs if wait else ():
        if exit_of(follow(job.run).state):
            write(f"Later runs wait for {job.run}. Resume it: slimscope resume {job.run}")
            break
    return [summary(queries.job(job.id)) for job in jobs]


def _source(file: str, preset: str, model: str) -> str:
    """Return the text of a preset or a file. Raises `ConfigError` if the arguments contradict each
    other or the file cannot be read."""
    if file and (preset or model):
        raise ConfigError(
            "A file cannot be combined with a preset or model.",
            "It names its own steps and model.",
            "Leave out --preset and --model.",
            "file",
        )
    if preset:
        return pipeline.preset(preset, model)
    if not file:
        raise ConfigError(
            "No pipeline is given.", "", "Name a YAML file, or a preset with --preset.", "file"
        )
    try:
        return sys.stdin.read() if file == STDIN else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read.", f"{error}.", "", "file") from error
