"""What an engine is asked to start: the request of one attempt."""

from __future__ import annotations

import sys

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.queue.engines.base import LaunchRequest
from backend.queue.folders import log_file
from backend.queue.launcher import CODE, job_environment, node_environment
from backend.queue.lifecycle import ME, note
from backend.queue.service import VARIABLES
from backend.settings import settings
from backend.store.states import QUICK_SLOT
from backend.store.tables import Attempt, Job, Slot, check_intact

NICE = 10  # of a job beside the slots
NO_TOKEN = "tokens are not stored: run `hf auth login` once, or set it where Slimscope is started"


def launch_request(session: Session, attempt: Attempt, job: Job, remote: bool) -> LaunchRequest:
    """The request of an attempt that has just been claimed, with its slot.

    Args:
        remote: whether it runs on a machine that gets nothing of the environment of this one, and
            writes its log by itself.
    """
    check_intact(job.config)
    check_intact(job.environment, "The environment")
    frozen, submitted = (job.environment.get(part, {}) for part in ("settings", VARIABLES))
    argv = [sys.executable, "-m", "jobs.runtime.main", "--attempt", str(attempt.id)]
    log, missing = log_file(job.run, attempt.n), list[str]()
    if remote:
        environment = node_environment(frozen, submitted)
        argv += ["--log", str(log.relative_to(settings().artifacts))]
    else:
        environment, missing = job_environment(frozen, submitted)
    if missing:
        note(session, job.id, f"started without {missing[0]}", ME, NO_TOKEN)
    slot = session.scalars(select(Slot.number).where(Slot.attempt_id == attempt.id)).one()
    return LaunchRequest(
        attempt_id=attempt.id,
        argv=tuple(argv),
        environment=environment,
        log=str(log),
        folder=str(CODE),
        slot=slot,
        nice=NICE if slot == QUICK_SLOT else 0,
        device=str(job.config.get("device", "")),
        threads=int(job.config.get("threads") or 0),
        processes=int(job.config.get("processes") or 1),
        token=attempt.token,
    )
