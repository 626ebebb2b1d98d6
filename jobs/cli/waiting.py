"""Commands that follow runs: `slimscope wait`, `--wait` of commands that add runs, and `slimscope
logs`."""

import time
from typing import Annotated

import typer

from backend.errors import NotFoundError
from backend.queue.folders import read_log, whole_log
from backend.store import queries
from backend.store.states import TERMINAL
from jobs.cli.console import DIFFERENT, NAP_S, exit_of, follow, write
from jobs.metrics import PERPLEXITY
from jobs.operations.details import comparison_text, results_text, sweep_text
from jobs.operations.registry import Record, Run, Runs, operation
from jobs.record import record, sweep_record
from jobs.reproduction import reproduced


def _exit_code(found: Record) -> int:
    """Of the first run that did not succeed, or of a comparison."""
    if found.get("outcome") == "different":
        return DIFFERENT
    runs = found.get("runs") or [queries.job(found.get("second") or found["id"])]
    states = (run["state"] if isinstance(run, dict) else run.state for run in runs)
    return next(filter(None, map(exit_of, states)), 0)


def _text(found: Record) -> str:
    if "outcome" in found:
        return comparison_text(found)
    runs = found.get("runs") or [found]
    try:
        text = sweep_text(found, str(PERPLEXITY)) if "runs" in found else results_text(found)
    except NotFoundError as error:  # no run of the sweep came so far
        text = str(error)
    errors = (f"{run['id']}: {queries.job(run['id']).error_text}" for run in runs if run["error"])
    return "\n".join([text, *errors])


@operation("wait", path="", tool="", said=_text, exit_code=_exit_code)
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
