"""How long a run will take on this machine, learned from the runs it has finished."""

from __future__ import annotations

from statistics import median

from backend.settings import available_threads, settings
from backend.store import queries
from backend.store.states import State

FLOPS_PER_THREAD = 40e9  # measured on two cores with bfloat16 units; only until a run has finished
REMEMBERED = 5
START_S = 6.0  # to start a process and import torch


def seconds_for(kind: str, model: str, work: float) -> tuple[float, str]:
    """Expected seconds for `work` floating-point operations, and where the figure comes from.

    Only runs on the same model count: a toy spends its time on other things than arithmetic.
    """
    finished = {
        job.id: job.finished_at - job.started_at
        for job in queries.jobs([State.SUCCEEDED], kind)
        if job.config.get("model") == model
        and job.attempts_made == 1
        and job.finished_at
        and job.started_at
    }
    paces = [
        row.value / max(finished[row.job_id] / 1000 - START_S, 0.1)
        for row in queries.results([*finished][:REMEMBERED])
        if row.metric == "work"
    ]
    if paces:
        runs = "run" if len(paces) == 1 else "runs"
        return START_S + work / median(paces), f"learned from {len(paces)} finished {runs}"
    threads = settings().threads or available_threads()
    guess = START_S + work / (FLOPS_PER_THREAD * threads)
    return guess, "a first guess; better after the first run"
