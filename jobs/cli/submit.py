"""`slimscope submit KIND …`: one command a kind, its options drawn from the kind's config."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape

from backend.errors import NotFoundError
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs import sweep
from jobs.cli.console import EXIT, PERPLEXITY, follow, me, out, say
from jobs.cli.tables import results_table, sweep_table
from jobs.fields.types import options
from jobs.kind import Kind, kinds
from jobs.record import record, summary, sweep_record

submit_app = typer.Typer(help="Add a run to the queue.", no_args_is_help=True)


def add_kinds() -> None:
    """Gives every kind its command."""
    for kind in kinds().values():
        submit_app.command(kind.name)(_command(kind))


def _command(kind: Kind) -> Callable[..., None]:
    """A command whose options are the fields of the kind's config."""

    def command(**values: Any) -> None:
        name, priority = values.pop("name"), values.pop("priority")
        wait, as_json = values.pop("wait"), values.pop("json")
        preset = kind.preset(values.pop("preset"))
        swept = sweep.read(kind.name, map(_pair, values.pop("sweep") or ()))
        chosen = {k: v for k, v in values.items() if v is not None}
        values = {**preset, **chosen}
        jobs = sweep.queue(kind.name, values, swept, me(), name=name, priority=priority)
        if wait:
            _wait(jobs, as_json)
        _say_queued(jobs, as_json)

    command.__signature__ = inspect.Signature(list(_options(kind)))  # type: ignore[attr-defined]
    command.__doc__ = kind.summary
    return command


def _say_queued(jobs: Sequence[Job], as_json: bool) -> None:
    place = queries.status().position(jobs[0].id) or 1
    if len(jobs) == 1:
        say(summary(jobs[0]), as_json, f"{jobs[0].run} is queued, place {place}.")
    else:
        text = (
            f"{jobs[0].run} to {jobs[-1].run} are queued, {len(jobs)} runs from place {place} on."
        )
        say([summary(job) for job in jobs], as_json, text)


def _pair(text: str) -> tuple[str, str]:
    """A field and its values, of "pattern=2:4,70%"."""
    field, _, values = text.partition("=")
    return field, values


def _options(kind: Kind) -> Iterator[inspect.Parameter]:
    """One keyword option for each field; None means: not given."""
    for name, info in kind.config.model_fields.items():
        choices = " | ".join(options(info.annotation))
        about = escape(f"{info.title}. {info.description} {choices} (default {info.default})")
        flag = name.replace("_", "-")
        flag = f"--{flag}/--no-{flag}" if info.annotation is bool else f"--{flag}"
        simple = info.annotation if info.annotation in (bool, int, float) else str
        yield _option(name, simple | None, None, typer.Option(flag, help=about))
    presets = ", ".join(kind.presets) or "none"
    yield _option("preset", str, "", typer.Option(help=f"One of: {presets}."))
    swept = "FIELD=VALUES: a run for each of several values, as in seed=0..2 or pattern=2:4,70%."
    yield _option("sweep", list[str] | None, None, typer.Option("--sweep", help=swept))
    yield _option("name", str, "", typer.Option(help="A name of your own for the run."))
    yield _option("priority", int, 0, typer.Option(help="Higher starts earlier."))
    yield _option("wait", bool, False, typer.Option("--wait", help="Follow the run to its end."))
    yield _option("json", bool, False, typer.Option("--json", help="Print JSON."))


def _option(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _wait(jobs: Sequence[Job], as_json: bool) -> None:
    """Follows runs to their ends, prints their records, and leaves with the exit code of the
    first that did not succeed."""
    ended = [follow(job.run, quiet=as_json) for job in jobs]
    if as_json:
        print(json.dumps(sweep_record(ended) if len(ended) > 1 else record(ended[0].run), indent=1))
    else:
        _print_ended(ended)
    raise typer.Exit(next(filter(None, (EXIT[State(job.state)] for job in ended)), 0))


def _print_ended(ended: Sequence[Job]) -> None:
    try:
        alone = len(ended) == 1
        out.print(results_table(ended[0].run) if alone else sweep_table(ended, PERPLEXITY))
    except NotFoundError as error:  # no run of the sweep came so far
        out.print(str(error))
    for job in ended:
        if job.error:
            out.print(f"{job.run}: " + job.error_text, markup=False)
