"""Runs and sweeps as plain data: entries of lists, and records of all that is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.printable import readable_bytes, readable_seconds
from backend.queue import scheduling
from backend.queue.scheduling import awaited
from backend.queue.service import ESTIMATED_BYTES, ESTIMATED_SECONDS
from backend.settings import settings
from backend.store import queries
from backend.store.json_column import finite
from backend.store.tables import Job
from jobs import sweep
from jobs.reproduction import reproduced

ARTIFACT_FILES = 1000  # of one artifact that are listed
ATTEMPT_FIELDS = ("n", "outcome", "exit_code", "resumed_from")


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


def record(run: str | int) -> dict[str, Any]:
    """All that is known of a run but its curves and tensors, which are large. `place`: in the
    queue, from 1; None elsewhere."""
    job = queries.job(run)
    timings: dict[str, Any] = {t.step: t.seconds for t in queries.step_times([run])}
    repeats = reproduced(job)
    return summary(job) | {
        "place": scheduling.status().position(job.id),
        "reproduce": repeats.record() if repeats else None,
        "waits_for": [other.run for other in awaited([job.id]).get(job.id, [])],
        "kept_stage": job.kept_stage,
        "kept_reason": job.kept_reason,
        "flops": job.flops,
        "timed_seconds": job.timed_seconds,
        "results": results(run),
        "decoders": [row.report for row in queries.decoder_rows(run)],
        "artifacts": [
            {
                "kind": a.kind,
                "path": a.path,
                "bytes": a.bytes,
                "sha256": a.sha256,
                "files": _files(settings().artifacts / a.path),
            }
            for a in queries.artifacts(run)
        ],
        "timings": timings | {"peak_bytes": job.peak_bytes},
        "environment": job.environment,
        "attempts": [
            {name: getattr(attempt, name) for name in ATTEMPT_FIELDS}
            for attempt in queries.attempts(run)
        ],
    }


def _files(path: Path) -> dict[str, int]:
    """Files of an artifact, by their path below the artifact folder, with their sizes in bytes."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {
        str(file.relative_to(settings().artifacts)): file.stat().st_size
        for file in files[:ARTIFACT_FILES]
        if file.is_file()
    }


def sweep_record(jobs: Sequence[Job]) -> dict[str, Any]:
    """A sweep: its runs, and every figure over seeds."""
    ids = [job.id for job in jobs]
    rows = sweep.table(jobs, queries.results(ids), queries.step_times(ids))
    return {
        "sweep": jobs[0].run,
        "fields": sweep.varied(jobs),
        "runs": [summary(job) for job in jobs],
        "table": [vars(row) | {"metric": str(row.metric)} for row in rows],
    }
