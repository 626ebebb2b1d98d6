"""Estimated start times of queued runs, from what is running and what is queued before them."""

import heapq
import math
from collections.abc import Collection

from backend.queue.scheduling import QueueStatus
from backend.queue.service import ESTIMATED_SECONDS
from backend.settings import settings
from backend.store.states import Lane
from backend.store.tables import Job
from ui.format import eta


def start_times(status: QueueStatus, waiting: Collection[int] = ()) -> dict[int, float]:
    """Seconds until start by job id, up to the first job behind one of unknown duration; jobs
    `waiting` for another run are left out."""
    slots = settings().slots
    free = _free_in([job for job in status.live if job.lane != Lane.QUICK], slots)
    beside = _free_in([job for job in status.live if job.lane == Lane.QUICK], 1)
    starts: dict[int, float] = {}
    for job in (job for job in status.queued if job.id not in waiting):
        places = min(free, beside) if job.lane == Lane.QUICK else free
        at = places[0]
        if math.isinf(at):
            break
        starts[job.id] = at
        heapq.heapreplace(places, at + (job.environment or {}).get(ESTIMATED_SECONDS, math.inf))
    return starts


def _free_in(live: list[Job], places: int) -> list[float]:
    """Seconds until each of `places` is free, ascending."""
    left = [math.inf if job.eta_s is None else job.eta_s for job in live]
    return sorted([*left, *[0.0] * (places - len(left))])[-places:]


def start_words(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return "starts soon" if seconds < 1 else f"starts in {eta(seconds)}"
