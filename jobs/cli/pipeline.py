"""`slimscope pipeline FILE.yaml`: several runs, each on what the one before has saved."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from backend.errors import ConfigError
from backend.queue.actor import Actor
from backend.store import queries
from backend.store.states import TERMINAL
from jobs import pipeline
from jobs.cli.console import exit_of, follow, write
from jobs.operations.registry import Record, operation
from jobs.summary import summary

STDIN = "-"


def _code(answer: str | list[Record]) -> int:
    """Of the first run that has ended without success; 0 where they have only been queued."""
    runs = [] if isinstance(answer, str) else [queries.job(run["id"]) for run in answer]
    return next((code for job in runs if job.state in TERMINAL and (code := exit_of(job.state))), 0)


def _text(answer: str | list[Record]) -> str:
    return answer.rstrip() if isinstance(answer, str) else ""


@operation("pipeline", path="", tool="", said=_text, exit_code=_code)
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
        what, do = "A file names its own steps and model.", "Leave out --preset and --model."
        raise ConfigError(what, "", do, "file")
    if preset:
        return pipeline.preset(preset, model)
    if not file:
        what, do = "No pipeline is named.", "Name a YAML file, or a preset with --preset."
        raise ConfigError(what, "", do, "file")
    try:
        return sys.stdin.read() if file == STDIN else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read.", f"{error}.", "", "file") from error
