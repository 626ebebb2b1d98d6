"""`slimscope logs`: the log of a run, while it grows."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from backend.queue.folders import read_log, whole_log
from backend.store import queries
from backend.store.states import TERMINAL
from jobs.cli.console import NAP_S, write
from jobs.operations.registry import Record, Run, operation


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
