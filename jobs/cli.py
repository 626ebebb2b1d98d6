"""The command line: `slimscope …`, or `python -m jobs …`.

Exit codes: 0 done, 1 the run failed or was lost, 2 the request was refused, 3 the run was
cancelled. With --json every command prints one JSON value and nothing else.
"""

from __future__ import annotations

import getpass
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from backend.errors import ConfigRefused, SlimscopeError
from backend.queue import service, supervisor
from backend.queue.folders import read_log
from backend.queue.service import Actor
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.states import TERMINAL, State
from jobs.doctor import examine
from jobs.kinds import Kind, kind_named, kinds
from jobs.record import record, summary
from jobs.submit import submit

REFUSED, FAILED, CANCELLED = 2, 1, 3
EXIT = {State.SUCCEEDED: 0, State.FAILED: FAILED, State.LOST: FAILED, State.CANCELLED: CANCELLED}

app = typer.Typer(
    help="Compress causal language models and see what compression does to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
submit_app = typer.Typer(help="Add a run to the queue.", no_args_is_help=True)
app.add_typer(submit_app, name="submit")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Run = Annotated[str, typer.Argument(help="A run, such as sds-0042.")]
out = Console(highlight=False)


def me() -> Actor:
    """Whoever has a shell on this machine is a host."""
    return Actor(getpass.getuser(), "host")


def say(value: Any, as_json: bool, text: str) -> None:
    """Prints the JSON value, or the text for people."""
    print(json.dumps(value, indent=1) if as_json else text)


def _submit_command(kind: Kind) -> Callable[..., None]:
    """A command whose options are the fields of the kind's config."""

    def command(**values: Any) -> None:
        name, priority = values.pop("name"), values.pop("priority")
        wait, as_json = values.pop("wait"), values.pop("json")
        preset = values.pop("preset")
        if preset and preset not in kind.presets:
            raise SlimscopeError(
                f"There is no preset {preset!r}.", "", f"Choose: {', '.join(kind.presets)}."
            )
        chosen = {k: v for k, v in values.items() if v is not None}
        values = {**kind.presets.get(preset or "", {}), **chosen}
        job = submit(kind.name, values, me(), name=name, priority=priority)
        supervisor.ensure()
        if wait:
            _wait(job.run, as_json)
        position = queries.status().position(job.id)
        say(summary(job), as_json, f"{job.run} is queued, place {position or 1}.")

    command.__signature__ = inspect.Signature(list(_options(kind)))  # type: ignore[attr-defined]
    command.__doc__ = kind.summary
    return command


def _options(kind: Kind) -> Iterator[inspect.Parameter]:
    """One keyword option for each field; None means: not given."""
    for name, info in kind.config.model_fields.items():
        choices = " | ".join(map(str, get_args(info.annotation)))
        about = f"{info.title}. {info.description} {choices} (default {info.default})"
        flag = name.replace("_", "-")
        flag = f"--{flag}/--no-{flag}" if info.annotation is bool else f"--{flag}"
        simple = info.annotation if info.annotation in (bool, int, float) else str
        yield _option(name, simple | None, None, typer.Option(flag, help=about))
    presets = ", ".join(kind.presets) or "none"
    yield _option("preset", str, "", typer.Option(help=f"One of: {presets}."))
    yield _option("name", str, "", typer.Option(help="A name of your own for the run."))
    yield _option("priority", int, 0, typer.Option(help="Higher starts earlier."))
    yield _option("wait", bool, False, typer.Option("--wait", help="Follow the run to its end."))
    yield _option("json", bool, False, typer.Option("--json", help="Print JSON."))


def _option(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _wait(run: str, as_json: bool) -> None:
    """Follows a run to its end, prints its record, and leaves with its exit code."""
    shown = ""
    while (job := queries.job(run)).state not in TERMINAL:
        supervisor.ensure()
        share = f"{job.done / job.total:4.0%}" if job.total else "   –"
        line = f"{job.run}  {job.state:<10} {share}  {job.stage}"
        if line != shown and not as_json:
            out.print(line)
        shown = line
        time.sleep(0.5)
    if as_json:
        print(json.dumps(record(run), indent=1))
    else:
        out.print(_results_table(run))
        if job.error:
            out.print(" ".join(filter(None, job.error.values())))
    raise typer.Exit(EXIT[State(job.state)])


@app.command("list")
def list_runs(state: str = "", kind: str = "", limit: int = 50, as_json: Json = False) -> None:
    """List runs, the newest first."""
    if state and state not in {*State}:
        raise ConfigRefused(f"There is no state {state!r}.", "", f"Choose: {', '.join(State)}.")
    states = [State(state)] if state else None
    found = [summary(job) for job in queries.jobs(states, kind or None, limit)]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table("run", "state", "progress", "model", "name", box=None)
    for row in found:
        share = f"{row['progress']:.0%}"
        table.add_row(
            row["id"], row["state"], share, str(row["config"].get("model", "")), row["name"]
        )
    out.print(
        table
        if found
        else f"No runs in {settings().root}. Try: slimscope submit sds --model toy --wait"
    )


@app.command()
def show(run: Run, as_json: Json = False) -> None:
    """Show all that is known of a run."""
    if as_json:
        print(json.dumps(record(run), indent=1))
        return
    job = queries.job(run)
    out.print(f"{job.run}  {job.state}  {job.stage}")
    if job.error:
        out.print(" ".join(filter(None, job.error.values())))
    out.print(_results_table(run))
    for artifact in queries.artifacts(run):
        out.print(f"{artifact.kind:<10} {artifact.path}  {artifact.bytes / 1e6:.1f} MB")


def _results_table(run: str) -> Table:
    table = Table("metric", "stage", "value", "±", box=None)
    labels = kind_named(queries.job(run).kind).stages
    for row in queries.results([run]):
        if row.metric == "work":  # the basis of estimates
            continue
        if row.metric == "kept":
            table.title = f"Kept: {labels.get(row.details['kept'], row.details['kept'])}"
            continue
        spread = "" if row.stderr is None else f"{row.stderr:.3g}"
        table.add_row(row.metric, labels.get(row.stage, row.stage), f"{row.value:.6g}", spread)
    return table


@app.command()
def logs(run: Run, follow: Annotated[bool, typer.Option("-f", "--follow")] = False) -> None:
    """Print the log of a run's newest attempt."""
    attempt, offset = 0, None
    while True:
        job = queries.job(run)
        if job.attempts_made != attempt:
            attempt, offset = job.attempts_made, 0
        text, offset = read_log(job.run, attempt, offset)
        print(text, end="", flush=True)
        if not follow or (job.state in TERMINAL and not text):
            return
        time.sleep(0.5)


@app.command()
def cancel(run: Run, as_json: Json = False) -> None:
    """Ask a run to end; asked twice, it is killed."""
    before = queries.job(run)
    if before.state in TERMINAL:
        raise ConfigRefused(f"{before.run} was not cancelled.", f"It is {before.state} already.")
    service.cancel(run, me())
    supervisor.ensure()
    job = queries.job(run)
    say(summary(job), as_json, f"{job.run} is {job.state}, asked to {job.desired}.")


@app.command()
def resume(run: Run, as_json: Json = False) -> None:
    """Queue an ended run again, from its last checkpoint."""
    job = service.resume(run, me())
    supervisor.ensure()
    say(summary(job), as_json, f"{job.run} is queued again.")


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that can be chosen."""
    from dataclasses import asdict

    from backend.models.catalogue import entries

    found = entries()
    if as_json:
        print(json.dumps([asdict(e) for e in found], indent=1, default=str))
        return
    table = Table("model", "ready", "what it is", box=None)
    for entry in found:
        table.add_row(entry.name, "yes" if entry.ready else "no", entry.title)
    out.print(table)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, memory, models, texts, queue."""
    checks = examine()
    if as_json:
        print(json.dumps([vars(c) for c in checks], indent=1))
    else:
        for check in checks:
            out.print(f"{'ok  ' if check.ok else 'LOOK'} {check.name:<12} {check.text}")
    raise typer.Exit(0 if all(check.ok for check in checks) else FAILED)


def main() -> None:
    """The console script."""
    try:
        upgrade()
        for kind in kinds().values():
            submit_app.command(kind.name)(_submit_command(kind))
        app()
    except (SlimscopeError, ValidationError) as error:  # the latter: a SLIMSCOPE_ variable
        print(f"slimscope: {error}", file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
