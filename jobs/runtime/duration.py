"""How long a run will take on this machine, learned from the runs it has finished."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from backend.settings import available_threads, settings
from backend.store import queries
from backend.store.states import State
from jobs.metrics import WORK

FLOPS_PER_THREAD = 40e9  # measured on two cores with bfloat16 units; only until a run has finished
LOOKED_AT, LEARNED_FROM = 30, 3  # finished runs, and those of them whose work is most alike
START_S = 6.0  # to start a process and import torch


def estimate_seconds(kind: str, model: str, work: float, timed: float = 0.0) -> tuple[float, str]:
    """Expected seconds, and where the figure comes from.

    Only runs on the same model count (a toy spends its time on other things than arithmetic), and
    of those the ones that were given a time, or not, as this one is, and are nearest in size: a
    small run is mostly overhead.

    Args:
        work: floating-point operations of what takes as long as it takes.
        timed: seconds of what is given a time to take.
    """
    known = [each for each in _finished(kind, model) if (each.timed > 0) == (timed > 0)]
    nearest = sorted(known, key=lambda each: abs(math.log(each.work / max(work, 1))))[:LEARNED_FROM]
    if nearest:
        pace = median(each.seconds / each.work for each in nearest)
        runs = "run" if len(nearest) == 1 else "runs"
        return START_S + timed + work * pace, f"learned from {len(nearest)} finished {runs}"
    threads = settings().threads or available_threads()
    guess = START_S + timed + work / (FLOPS_PER_THREAD * threads)
    return guess, "a first guess; better after the first run"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its `work` and the `seconds` of it, besides those it had been given."""

    work: float
    seconds: float
    timed: float


def _finished(kind: str, model: str) -> list[FinishedRun]:
    """The runs to learn from, the newest first."""
    took = {
        job.id: (job.finished_at - job.started_at) / 1000 - START_S
        for job in queries.jobs([State.SUCCEEDED], kind)
        if job.config.get("model") == model
        and job.attempts_made == 1
        and job.finished_at
        and job.started_at
    }
    told = [
        (row.job_id, row.value, float(row.details.get("timed", 0.0)))
        for row in queries.results([*took][:LOOKED_AT])
        if row.metric == WORK and row.value > 0
    ]
    return [
        FinishedRun(work, max(took[run] - timed, 0.1), timed)
        for run, work, timed in sorted(told, reverse=True)
    ]
