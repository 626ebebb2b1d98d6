"""The command line: `slimscope …`, or `python -m jobs …`.

Exit codes: 0 done, 1 the run failed or was lost, 2 the request was refused, 3 the run was
cancelled, 4 reproduction mismatch. With --json a command prints one JSON value
and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from backend.errors import ConfigError, NotFoundError
from backend.models.sources.setup import main as set_up_models
from backend.queue.dependencies import awaited
from backend.queue.folders import read_log, whole_log
from backend.queue.launcher import CODE
from backend.settings import settings
from backend.store import queries
from backend.store.copies import has_database
from backend.store.file_modes import restrict_access
from backend.store.migrate import upgrade
from backend.store.states import TERMINAL, State
from backend.text.setup import main as set_up_text
from jobs import operations
from jobs.cli.console import (
    DIFFERENT,
    EXIT,
    FAILED,
    NAP_S,
    PERPLEXITY,
    follow,
    in_one_line,
    me,
    out,
    say,
    write,
)
from jobs.cli.decoding import add_decoding
from jobs.cli.doctor.report import examine
from jobs.cli.mcp import build
from jobs.cli.pipeline import add_pipeline
from jobs.cli.runs import COMMANDS, add_runs
from jobs.cli.storage import RESTORE, add_storage
from jobs.cli.submit import add_kinds, submit_app
from jobs.cli.tables import (
    differences_table,
    measured,
    results_table,
    runs_table,
    sweep_table,
)
from jobs.fields.model import DEFAULT_MODEL
from jobs.reproduction import Reproduction, compare, reproduced

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(submit_app, name="submit")
add_storage(app)
add_runs(app)
add_pipeline(app)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Run = Annotated[str, typer.Argument(help="A run, such as sds-0042.")]
Whole = Annotated[bool, typer.Option("--sweep", help="All runs of the sweep it belongs to.")]


LIST = "list"
OF_RUNS = {
    "show", "logs", "sweep", "disk", "free", "cancel", "next", "resume", "reproduce", *COMMANDS,
}  # fmt: skip
BY_THEMSELVES = {RESTORE, "serve", "setup", "models"}  # make the database, or need none
NO_RUNS = "Try: slimscope submit sds --model toy --wait"


@app.callback(invoke_without_command=True)
def prepare(context: typer.Context) -> None:
    """Compress causal language models and see what compression does to them. Without a command:
    open the dashboard."""
    command = context.invoked_subcommand
    if command is None:
        serve()
    restrict_access()
    if command in BY_THEMSELVES or (command == LIST and not has_database()):
        return
    if command in OF_RUNS and not has_database():
        raise NotFoundError(f"There are no runs in {settings().root}.", "", NO_RUNS)
    upgrade()


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: as set, or 7860.")] = 0,
) -> None:
    """Open the dashboard, as slimscope alone does."""
    given = {"SLIMSCOPE_HOST": host, "SLIMSCOPE_PORT": port}
    environment = {**os.environ, **{name: str(value) for name, value in given.items() if value}}
    command = [sys.executable, str(CODE / "app.py")]
    os.execve(command[0], command, environment)


@app.command()
def setup(model: Annotated[str, typer.Argument(help="A model of the list.")] = "") -> None:
    """Fetch the default model, or another, and the sample text."""
    failed = set_up_models([model or DEFAULT_MODEL]) or set_up_text()
    raise typer.Exit(failed)


@app.command(LIST)
def list_runs(
    state: str = "",
    kind: str = "",
    limit: Annotated[int, typer.Option(min=1, max=operations.MAX_RUNS)] = 50,
    as_json: Json = False,
) -> None:
    """List runs, the newest first."""
    if state and state not in {*State}:
        raise ConfigError(f"There is no state {state!r}.", "", f"Choose: {', '.join(State)}.")
    wanted = (State(state) if state else None, kind or None, limit)
    records = operations.list_runs(*wanted) if has_database() else []
    if as_json:
        print(json.dumps(records, indent=1))
        return
    none = f"No runs in {settings().root}. {NO_RUNS}"
    out.print(runs_table(records) if records else none)


@app.command()
def show(run: Run, as_json: Json = False) -> None:
    """Show a run: its state, results and files."""
    if as_json:
        print(json.dumps(operations.show_run(run), indent=1))
        return
    job = queries.job(run)
    out.print(f"{job.run}  {job.state}  {job.stage}")
    if others := awaited([job.id]).get(job.id):
        out.print(f"It waits for {', '.join(f'{x.run}, which is {x.state}' for x in others)}.")
    if job.error:
        out.print(job.error_text, markup=False)
    out.print(results_table(run))
    if comparison := reproduced(job):
        _print_comparison(comparison)
    for artifact in queries.artifacts(run):
        out.print(f"{artifact.kind:<10} {artifact.path}  {artifact.bytes / 1e6:.1f} MB")


@app.command("reproduce")
def reproduce_run(
    run: Run,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for it to end, then compare.")] = False,
    as_json: Json = False,
) -> None:
    """Reproduce a run: repeat it with its frozen config, settings and texts, and compare."""
    new = operations.reproduce_run(run, me())
    if not wait:
        say(new, as_json, f"{new['id']} is queued; it repeats {queries.job(run).run}.")
        return
    ended = follow(new["id"], quiet=as_json)
    comparison = compare(run, new["id"])
    if as_json:
        print(json.dumps(comparison.record(), indent=1))
    else:
        _print_comparison(comparison)
    if comparison.outcome == "different":
        raise typer.Exit(DIFFERENT)
    raise typer.Exit(EXIT[State(ended.state)])


def _print_comparison(comparison: Reproduction) -> None:
    out.print(escape(str(comparison)))
    if comparison.outcome != "open" and comparison.differences:
        out.print(differences_table(comparison))


@app.command()
def logs(
    run: Run,
    on: Annotated[bool, typer.Option("-f", "--follow", help="Print until it ends.")] = False,
    whole: Annotated[bool, typer.Option("--all", help="Of all attempts.")] = False,
) -> None:
    """Print the log of a run's newest attempt."""
    if whole:
        write(whole_log(run, queries.job(run).attempts_made).decode(errors="replace"))
        return
    attempt, offset = 0, None
    while True:
        job = queries.job(run)
        if job.attempts_made != attempt:
            attempt, offset = job.attempts_made, 0
        text, _, offset = read_log(job.run, attempt, offset)
        write(text)
        if not on or (job.state in TERMINAL and not text):
            return
        time.sleep(NAP_S)


@app.command("sweep")
def show_sweep(run: Run, metric: str = str(PERPLEXITY), as_json: Json = False) -> None:
    """Show a sweep by one of its runs: mean ± sample standard deviation over seeds."""
    if as_json:
        print(json.dumps(operations.show_sweep(run), indent=1))
        return
    jobs = operations.sweep_of(run)
    states = Counter(job.state for job in jobs)
    out.print(f"{len(jobs)} runs: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    if measured(jobs):
        out.print(sweep_table(jobs, metric))


@app.command()
def cancel(run: Run, whole: Whole = False, as_json: Json = False) -> None:
    """Ask a run to stop; asked twice, it is killed."""
    jobs = operations.sweep_of(run) if whole else [queries.job(run)]
    records = operations.cancel_runs([job.run for job in jobs], me())
    _say_all(records, as_json, "{id} is {state}, asked to {desired}.")


@app.command("next")
def run_next(run: Run, as_json: Json = False) -> None:
    """Move a queued run to the front of the queue."""
    _say_all([operations.run_next(run, me())], as_json, "{id} is the next to start.")


@app.command()
def resume(run: Run, whole: Whole = False, as_json: Json = False) -> None:
    """Queue an ended run again, from its last checkpoint."""
    if whole:
        records = operations.resume_runs([job.run for job in operations.sweep_of(run)], me())
    else:
        records = [operations.resume_run(run, me())]
    _say_all(records, as_json, "{id} is queued again.")


def _say_all(records: Sequence[dict[str, Any]], as_json: bool, text: str) -> None:
    """Print one run, or several, as they are now."""
    lines = "\n".join(text.format_map(record) for record in records) or "There is nothing to do."
    say(records[0] if len(records) == 1 else records, as_json, lines)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that can be chosen."""
    known = operations.list_models()
    if as_json:
        print(json.dumps(known, indent=1))
        return
    table = Table("model", "ready", "what it is", "licence", box=None)
    for entry in known:
        ready = "yes" if entry["ready"] else "refused" if entry["refused"] else "no"
        about = entry["refused"] or entry["title"]
        table.add_row(*map(escape, (entry["name"], ready, about, entry["licence"])))
    out.print(table)


@app.command()
def mcp() -> None:
    """Serve the queue to agents over standard input and output (Model Context Protocol)."""
    build(me()).run()


@app.command()
def doctor(
    as_json: Json = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Send a job to the cluster: its versions, and its artefacts."),
    ] = False,
) -> None:
    """Check this machine and the data folder, and say what to do."""
    checks = examine(probe)
    if as_json:
        print(json.dumps([vars(c) for c in checks], indent=1))
    else:
        for check in checks:
            out.print(
                f"{'ok  ' if check.ok else 'LOOK'} {check.name:<14} {check.text}", markup=False
            )
            if check.fix:
                out.print(f"     {'':<14} -> {check.fix}", markup=False)
    raise typer.Exit(0 if all(check.ok for check in checks) else FAILED)


add_decoding(app)


def main() -> None:
    """The console script."""
    with in_one_line():
        if "submit" in sys.argv:  # nothing else needs the kinds' options
            add_kinds()
        app()


if __name__ == "__main__":
    main()
