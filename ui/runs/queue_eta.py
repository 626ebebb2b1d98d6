"""Estimated start times of queued runs, from what is running and what is queued before them."""

import heapq
import json
import math
from collections.abc import Collection
from functools import lru_cache

from backend.queue.scheduling import QueueStatus
from backend.settings import settings
from backend.store.states import Lane
from backend.store.tables import Job
from jobs.submit import checked
from ui.format import eta


def start_times(status: QueueStatus, waiting: Collection[int] = ()) -> dict[int, float]:
    """Seconds until start by job id, up to the first job behind one of unknown duration; jobs
    `waiting` for another run are left out."""
    slots = settings().slots
    free = _free_in([job for job in status.live if job.lane != Lane.QUICK], slots)
    beside = _free_in([job for job in status.live if job.lane == Lane.QUICK], 1)
    starts: dict[int, float] = {}
    # an estimate reads the model's files
    for job in (job for job in status.queued[:20] if job.id not in waiting):
        places = min(free, beside) if job.lane == Lane.QUICK else free
        at = places[0]
        if math.isinf(at):
            break
        starts[job.id] = at
        heapq.heapreplace(places, at + expected_seconds(job, status.finished))
    return starts


def _free_in(live: list[Job], places: int) -> list[float]:
    """Seconds until each of `places` is free, ascending."""
    left = [math.inf if job.eta_s is None else job.eta_s for job in live]
    return sorted([*left, *[0.0] * (places - len(left))])[-places:]


def expected_seconds(job: Job, finished: int) -> float:
    """Of a queued job, infinite if unknown. Each of the `finished` jobs may improve it."""
    return _expected(job.kind, json.dumps(job.config), finished)


@lru_cache(maxsize=256)
def _expected(kind: str, config: str, _finished: int) -> float:
    try:
        seconds = checked(kind, json.loads(config))[1].seconds
    except Exception:  # whatever is wrong with a queued run, the queue is shown
        return math.inf
    return math.inf if seconds is None else seconds


def start_words(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return "starts soon" if seconds < 1 else f"starts in {eta(seconds)}"
