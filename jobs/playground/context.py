"""An answer's view of its run, in a process that gives several answers at once."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from backend.queue.actor import GUEST
from backend.queue.engines.local import reference
from backend.queue.folders import log_file
from backend.queue.lifecycle import answer_waits, start_answer
from backend.store.session import reading, writing
from backend.store.tables import Attempt, Job
from jobs.playground.pool import ModelPool
from jobs.playground.share import CpuShare, MainThread
from jobs.runtime.context import JobContext


class AnswerContext(JobContext):
    """A `JobContext` whose process goes on when it ends; `guest`: whether a guest asked."""

    def __init__(
        self, attempt: Attempt, job: Job, models: ModelPool, share: CpuShare, main: MainThread
    ) -> None:
        super().__init__(attempt, job)
        self.models, self.share, self.main = models, share, main
        self.guest = job.owner.startswith(GUEST)
        self._log = log_file(job.run, attempt.n)
        self._log.parent.mkdir(parents=True, exist_ok=True)

    def log(self, text: str) -> None:
        with suppress(OSError), self._log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')}  {text}\n")

    def leave(self) -> None:
        self.log("Another attempt holds this run; this one stops.")
        self.ask_stop()


def claim_answer(
    models: ModelPool, share: CpuShare, main: MainThread, guests: bool
) -> AnswerContext | None:
    """Takes the next queued answer, of a guest only if `guests`; only one process gets it."""
    with reading() as session:  # most turns end here, without a write lock
        if not answer_waits(session, guests):
            return None
    with writing(durable=True) as session:
        attempt = start_answer(session, reference(os.getpid()), guests)
        job = session.get_one(Job, attempt.job_id) if attempt else None
    if attempt is None or job is None:
        return None
    return AnswerContext(attempt, job, models, share, main)
