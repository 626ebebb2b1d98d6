"""The queue of the tests of jobs: real processes, forked from a warm one, and forked again at once
when they have died."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest

from backend.queue.artifacts import run_folder
from backend.queue.engines.local import reference
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.session import writing
from backend.store.tables import Attempt
from jobs.runtime.context import JobContext, claim
from jobs.runtime.row_buffer import LeaseLostError
from jobs.submit import submit
from tests.jobs.conftest import counting_queue, loop, queue, wait
from tests.queue.conftest import HOST, process_of

__all__ = ["counting_queue", "loop", "queue", "wait"]

ClaimHere = Callable[..., JobContext]


@pytest.fixture
def claim_here(loop: SupervisorLoop, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClaimHere]:
    """Adds a job, and makes this process the one that runs it."""
    contexts: list[JobContext] = []

    def added(kind: str = "count", **config: object) -> JobContext:
        job = submit(kind, config, HOST)
        with monkeypatch.context() as patch:
            patch.setattr(loop.engine, "launch", lambda _: reference(os.getpid()))
            loop.turn()
        contexts.append(claim(queries.attempts(job.id)[-1].id))
        return contexts[-1]

    yield added
    for context in contexts:
        with suppress(LeaseLostError):  # another attempt has followed
            context.finish("stopped")
    with writing() as session:  # this process is not to be ended with the queue
        session.query(Attempt).update({Attempt.engine_ref: None})


def remove_files(run: int) -> None:
    """Removes the folder of a run by hand; if it is running, in the middle of whatever it does."""
    process = process_of(run) if queries.job(run).state == "running" else None
    if process:
        process.send_signal(signal.SIGSTOP)
    shutil.rmtree(run_folder(queries.job(run).run))
    if process:
        process.send_signal(signal.SIGCONT)


def until_dead(run: int) -> None:
    """Waits for the end of a run's process, of which no supervisor takes notice meanwhile."""
    with suppress(psutil.NoSuchProcess):
        process_of(run).wait(60)
