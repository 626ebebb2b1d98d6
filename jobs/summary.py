"""Runs as plain data, as far as it needs no kind: what lists, the API and exports contain."""

from typing import Any

from backend.printable import readable_bytes, readable_seconds
from backend.queue.service import ESTIMATED_BYTES, ESTIMATED_SECONDS
from backend.store import queries
from backend.store.json_column import finite
from backend.store.tables import Job


def summary(job: Job) -> dict[str, Any]:
    """One entry of a list of runs. Times are UTC milliseconds since 1970."""
    return {
        "id": job.run,
        "kind": job.kind,
        "name": job.name,
        "owner": job.owner,
        "state": job.state,
        "damaged": job.damaged,
        "desired": job.desired,
        "stage": job.stage,
        "progress": job.share or 0.0,
        "eta_s": job.eta_s,
        "config": job.config,
        "sweep": job.sweep,
        "parent": job.parent,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "disk_bytes": job.disk_bytes,
        "error": job.error,
    }


def cost_text(job: Job) -> str:
    """What a run was estimated to take, and what it took: "Estimated 3 min, 1.2 GB; took 4 min,
    1.1 GB."; empty without an estimate."""
    seconds, size = (job.environment.get(key) for key in (ESTIMATED_SECONDS, ESTIMATED_BYTES))
    ended = job.started_at and job.finished_at
    spent = (job.finished_at - job.started_at) / 1000 if ended else None  # type: ignore[operator]
    told = [
        f"{word} {readable_seconds(time)}" + (f", {readable_bytes(memory)}" if memory else "")
        for word, time, memory in (("Estimated", seconds, size), ("took", spent, job.peak_bytes))
        if time is not None
    ]
    return f"{'; '.join(told)}." if seconds is not None else ""


def results(run: str | int) -> list[dict[str, Any]]:
    return [
        {"stage": r.stage, "metric": str(r.metric), "value": r.value, "stderr": r.stderr, "n": r.n}
        | r.details
        for r in queries.results([run])
    ]


def tensors(run: str | int) -> list[dict[str, Any]]:
    """The statistics of a run's tensors; JSON has no NaN, so it becomes null."""
    return [finite(row) for row in queries.tensor_rows(run)]
