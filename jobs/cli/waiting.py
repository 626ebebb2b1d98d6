"""`slimscope wait`, and `--wait` of commands that add runs."""

from __future__ import annotations

from backend.errors import NotFoundError
from backend.store import queries
from jobs.cli.console import DIFFERENT, exit_of, follow
from jobs.metrics import PERPLEXITY
from jobs.operations.details import comparison_text, results_text, sweep_text
from jobs.operations.registry import Record, Runs, operation
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
