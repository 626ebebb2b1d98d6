"""When a waiting run may start: a guess from what runs now and what stands before it."""

from __future__ import annotations

import heapq
import json
import math
from functools import lru_cache

from backend.settings import settings
from backend.store.queries import QueueStatus
from backend.store.tables import Job
from jobs.submit import checked
from ui.format import eta

LOOKED_AT = 20  # of the queue; what a run will take is read off its model's files


def start_times(status: QueueStatus) -> dict[int, float]:
    """Job id -> seconds until it may start, for the head of the queue; up to the first job before
    which something takes nobody knows how long."""
    slots = settings().slots
    left = [math.inf if job.eta_s is None else job.eta_s for job in status.live]
    free = sorted([*left, *[0.0] * (slots - len(left))])[-slots:]
    found: dict[int, float] = {}
    for job in status.queued[:LOOKED_AT]:
        at = free[0]
        if math.isinf(at):
            break
        found[job.id] = at
        heapq.heapreplace(free, at + expected_seconds(job, status.finished))
    return found


def expected_seconds(job: Job, finished: int) -> float:
    """Seconds a queued job is expected to run; infinite when nobody knows.

    Args:
        finished: how many jobs have ended; each may have taught a better estimate.
    """
    return _takes(job.kind, json.dumps(job.config), finished)


@lru_cache(maxsize=256)
def _takes(kind: str, config: str, _finished: int) -> float:
    try:
        seconds = checked(kind, json.loads(config))[1].seconds
    except Exception:  # whatever is wrong with a run that waits, the list of runs is shown
        return math.inf
    return math.inf if seconds is None else seconds


def start_words(seconds: float | None) -> str:
    """ "starts in about 5 min"; nothing when nobody knows."""
    if seconds is None:
        return ""
    return "starts soon" if seconds < 1 else f"starts in {eta(seconds)}"
