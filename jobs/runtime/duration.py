"""How long a run takes, learned from finished runs on machines of the same class; and the costs
that the estimates of several kinds rest on."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from backend.queue.engines.choose import CLUSTERS
from backend.queue.engines.local import installed_gpus
from backend.settings import available_threads, settings
from backend.store import queries
from backend.store.states import State

GRAM_SHARE = 0.6  # q/k/v and gate/up read the same input and share one Gram matrix
DECODE_COST = 4.0  # FLOPs of a token decoded alone, over those of one read in a batch
STATISTICS_FLOPS = 700.0  # of one weight: it is sorted and counted
ADAM_BYTES = 16  # of a trained parameter: itself, its gradient, two moments
FLOPS_PER_THREAD = 90e9  # measured on two cores with bfloat16 units; used until a run has finished
RECENT_RUNS, NEAREST_RUNS = 30, 3  # finished runs looked at, and those nearest in size of them
START_S = 6.0  # to start a process and import torch


def estimate_seconds(
    kind: str,
    model: str,
    flops: float,
    timed_seconds: float = 0.0,
    device: str = "auto",
) -> tuple[float, str]:
    """Expected seconds, and the basis of the figure in words.

    The pace is the median of the finished runs nearest in FLOPs, because a small run is mostly
    overhead. Only runs on the same model count (a toy spends its time on other things than
    arithmetic), on machines of one class, and only those with a time budget if this run has one.

    Args:
        flops: floating-point operations of all phases without a time budget.
        timed_seconds: the time budget of the others.
        device: as in the config.
    """
    alike = [run for run in _finished(kind, model) if (run.timed > 0) == (timed_seconds > 0)]
    unknown = settings().engine in CLUSTERS or _may_use_gpu(device)  # then the newest run tells
    there = _newest_class(alike, device) if unknown else processor()
    alike = [run for run in alike if run.machine == there]
    nearest = sorted(alike, key=lambda run: abs(math.log(run.flops / max(flops, 1))))[:NEAREST_RUNS]
    if nearest:
        pace = median(run.seconds / run.flops for run in nearest)
        runs = "run" if len(nearest) == 1 else "runs"
        seconds = START_S + timed_seconds + flops * pace
        return seconds, f"learned from {len(nearest)} finished {runs}"
    threads = settings().threads or available_threads()
    guess = START_S + timed_seconds + flops / (FLOPS_PER_THREAD * threads)
    return guess, "rough estimate: it improves after the first run"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its FLOPs, the `seconds` they took, and the seconds of its time budget.
    `machine`: the class of the machine: its GPU where it used one (`on_gpu`), else its
    processor."""

    flops: float
    seconds: float
    timed: float
    machine: str
    on_gpu: bool


def _may_use_gpu(device: str) -> bool:
    """Whether the machine of a run has a GPU for it, as far as is known beforehand."""
    here = settings()
    there = here.job_gpus if here.engine in CLUSTERS else installed_gpus()
    return device != "cpu" and bool(there)


def _newest_class(runs: Sequence[FinishedRun], device: str) -> str:
    """The class of the machine of the newest run, on a GPU where one may be used; auto uses none
    where torch has no CUDA, so that none has. Empty if no run tells."""
    on_gpu = [run for run in runs if run.on_gpu] if _may_use_gpu(device) else []
    telling = on_gpu or (runs if device in ("auto", "cpu") else [])
    return telling[0].machine if telling else ""


def _class_in(environment: Mapping[str, Any]) -> str:
    """The class of the machine that a run was on; that of this one for a run that did not say."""
    device = str(environment.get("device", "cpu"))
    name = str(environment.get("cpu", "")).rpartition(", ")[0]  # without its cores
    return (name or processor()) if device == "cpu" else device


@lru_cache
def processor() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = names[0].split(":", 1)[1].strip() if names else name
    return name


def _finished(kind: str, model: str) -> list[FinishedRun]:
    """The runs to learn from, the newest first."""
    runs = [
        (job, (job.finished_at - job.started_at) / 1000 - START_S - (job.timed_seconds or 0.0))
        for job in queries.jobs([State.SUCCEEDED], kind)
        if job.config.get("model") == model
        and job.id > 0  # examples ran on another machine
        and job.attempts_made == 1
        and job.finished_at
        and job.started_at
    ]
    return [
        FinishedRun(
            job.flops,
            max(seconds, 0.1),
            job.timed_seconds or 0.0,
            _class_in(job.environment or {}),
            str((job.environment or {}).get("device", "cpu")) != "cpu",
        )
        for job, seconds in runs[:RECENT_RUNS]
        if job.flops
    ]
