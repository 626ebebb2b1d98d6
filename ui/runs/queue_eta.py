"""Estimated start times of queued runs, from the live runs and the runs ahead in the queue."""

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
    """Seconds until queued jobs start, by job id.

    The estimate ends at the first job that has to wait for one of unknown duration.

    Args:
        waiting: ids of jobs that wait for another run; they are omitted.
    """
    slots_s = _seconds_until_free(
        [job for job in status.live if job.lane != Lane.QUICK], settings().slots
    )
    quick_slots_s = _seconds_until_free([job for job in status.live if job.lane == Lane.QUICK], 1)
    starts: dict[int, float] = {}
    for job in (job for job in status.queued if job.id not in waiting):
        candidates_s = min(slots_s, quick_slots_s) if job.lane == Lane.QUICK else slots_s
        start_s = candidates_s[0]
        if math.isinf(start_s):
            break
        starts[job.id] = start_s
        duration_s = (job.environment or {}).get(ESTIMATED_SECONDS, math.inf)
        heapq.heapreplace(candidates_s, start_s + duration_s)
    return starts


def _seconds_until_free(live: list[Job], slots: int) -> list[float]:
    """Seconds until each of `slots` is free, ascending."""
    remaining_s = [math.inf if job.eta_s is None else job.eta_s for job in live]
    return sorted([*remaining_s, *[0.0] * (slots - len(remaining_s))])[-slots:]


def start_words(seconds: float | None) -> str:
    """The time until a run starts, such as "starts in 5 min"; empty if unknown."""
    if seconds is None:
        return ""
    return "starts soon" if seconds < 1 else f"starts in {eta(seconds)}"
