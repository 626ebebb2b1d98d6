"""`slimscope pipeline FILE.yaml`: several runs, each on what the one before has saved."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from backend.errors import ConfigError
from backend.store.states import State
from jobs import pipeline
from jobs.cli.console import EXIT, follow, me, out, say
from jobs.record import summary

STDIN = "-"


def add_pipeline(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("pipeline")(queue)


def queue(
    file: Annotated[str, typer.Argument(help="A YAML file; - reads standard input.")] = "",
    preset: Annotated[
        str, typer.Option(help=f"One of: {', '.join(map(repr, pipeline.PRESETS))}.")
    ] = "",
    model: Annotated[str, typer.Option(help="Of the preset; a file names its own.")] = "",
    show: Annotated[bool, typer.Option("--show", help="Print the YAML and queue nothing.")] = False,
    priority: Annotated[int, typer.Option(help="Higher starts earlier.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the runs to their ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Queue a pipeline: each run waits for the one before, and works on what it has saved."""
    text = _text(file, preset, model)
    if show:
        say(text, as_json, text.rstrip())
        return
    jobs = pipeline.queue(pipeline.read(text), me(), priority=priority)
    names = " → ".join(job.run for job in jobs)
    say([summary(job) for job in jobs], as_json, f"Queued: {names}.")
    if wait:
        _wait([job.run for job in jobs], quiet=as_json)


def _wait(runs: Sequence[str], quiet: bool) -> None:
    """Follow runs to their ends, or to the first that does not succeed: the others wait for it."""
    for run in runs:
        if code := EXIT[State(follow(run, quiet).state)]:
            if not quiet:
                out.print(f"The others wait until {run} has succeeded: slimscope resume {run}")
            raise typer.Exit(code)


def _text(file: str, preset: str, model: str) -> str:
    """What was chosen: the text of a preset, or of a file.

    Raises:
        ConfigError: neither, both, or a model for a file; the file cannot be read.
    """
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
