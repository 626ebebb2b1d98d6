"""How long a run will take on this machine, learned from the runs it has finished."""

from __future__ import annotations

import math
from statistics import median

from backend.settings import available_threads, settings
from backend.store import queries
from backend.store.states import State

FLOPS_PER_THREAD = 40e9  # measured on two cores with bfloat16 units; only until a run has finished
LOOKED_AT, LEARNED_FROM = 30, 3  # finished runs, and those of them whose work is most alike
START_S = 6.0  # to start a process and import torch


def seconds_for(kind: str, model: str, work: float, timed: float = 0.0) -> tuple[float, str]:
    """Expected seconds, and where the figure comes from.

    Only runs on the same model count (a toy spends its time on other things than arithmetic), and
    of those the ones of most similar size: a small run is mostly overhead.

    Args:
        work: floating-point operations of what takes as long as it takes.
        timed: seconds of what is given a time to take.
    """
    paces = sorted(_paces(kind, model), key=lambda found: abs(math.log(found[0] / max(work, 1))))
    if paces:
        nearest = paces[:LEARNED_FROM]
        pace = median(seconds / done for done, seconds in nearest)
        runs = "run" if len(nearest) == 1 else "runs"
        return START_S + timed + work * pace, f"learned from {len(nearest)} finished {runs}"
    threads = settings().threads or available_threads()
    guess = START_S + timed + work / (FLOPS_PER_THREAD * threads)
    return guess, "a first guess; better after the first run"


def _paces(kind: str, model: str) -> list[tuple[float, float]]:
    """Work, and the seconds it took, of finished runs."""
    finished = {
        job.id: (job.finished_at - job.started_at) / 1000 - START_S
        for job in queries.jobs([State.SUCCEEDED], kind)
        if job.config.get("model") == model
        and job.attempts_made == 1
        and job.finished_at
        and job.started_at
    }
    return [
        (row.value, max(finished[row.job_id] - row.details.get("timed", 0.0), 0.1))
        for row in queries.results([*finished][:LOOKED_AT])
        if row.metric == "work" and row.value > 0
    ]
