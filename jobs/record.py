"""Runs and sweeps as plain data: list entries and complete records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.printable import readable_bytes, readable_seconds
from backend.queue import scheduling
from backend.queue.scheduling import awaited
from backend.queue.service import (
    ESTIMATED_BYTES,
    ESTIMATED_SECONDS,
    PREDICTED_BYTES,
    SOURCE_BYTES,
)
from backend.settings import settings
from backend.store import queries
from backend.store.json_column import finite
from backend.store.tables import Job
from jobs import sweep
from jobs.reproduction import reproduced

ARTIFACT_FILES = 1000  # maximum number of listed files per artifact
ATTEMPT_FIELDS = ("n", "outcome", "exit_code", "resumed_from")


def summary(job: Job) -> dict[str, Any]:
    """Return an entry for a list of runs. Times are UTC milliseconds since 1970."""
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
        "size_before_bytes": job.environment.get(SOURCE_BYTES) or None,
        "size_after_bytes": job.environment.get(PREDICTED_BYTES),
        "error": job.error,
    }


def cost_text(job: Job) -> str:
    """Format estimated and actual cost of a run: "Estimated 3 min, 1.2 GB; took 4 min, 1.1 GB.";
    empty without an estimate."""
    seconds, size = (job.environment.get(key) for key in (ESTIMATED_SECONDS, ESTIMATED_BYTES))
    has_ended = job.started_at and job.finished_at
    duration_s = (job.finished_at - job.started_at) / 1000 if has_ended else None  # type: ignore[operator]
    parts = [
        f"{label} {readable_seconds(time_s)}" + (f", {readable_bytes(memory)}" if memory else "")
        for label, time_s, memory in (
            ("Estimated", seconds, size),
            ("took", duration_s, job.peak_bytes),
        )
        if time_s is not None
    ]
    return f"{'; '.join(parts)}." if seconds is not None else ""


def size_text(job: Job) -> str:
    """Format the size of the source's files and of the saved file: "98 MB before, 270 MB after.";
    empty if a size is unknown."""
    before, after = (job.environment.get(key) for key in (SOURCE_BYTES, PREDICTED_BYTES))
    if not before or not after:
        return ""
    return f"{readable_bytes(before)} before, {readable_bytes(after)} after."


def results(run: str | int) -> list[dict[str, Any]]:
    """Return the results of a run with their details."""
    return [
        {"stage": r.stage, "metric": str(r.metric), "value": r.value, "stderr": r.stderr, "n": r.n}
        | r.details
        for r in queries.results([run])
    ]


def tensors(run: str | int) -> list[dict[str, Any]]:
    """Return the statistics of a run's tensors. NaN becomes None, since JSON has no NaN."""
    return [finite(row) for row in queries.tensor_rows(run)]


def record(run: str | int) -> dict[str, Any]:
    """Return everything about a run except its curves and tensors, which are large. `place` is the
    position in the queue, from 1; None if the run is not queued."""
    job = queries.job(run)
    timings: dict[str, Any] = {t.step: t.seconds for t in queries.step_times([run])}
    reproduction = reproduced(job)
    return summary(job) | {
        "place": scheduling.status().position(job.id),
        "reproduce": reproduction.record() if reproduction else None,
        "waits_for": [awaited_run.run for awaited_run in awaited([job.id]).get(job.id, [])],
        "kept_stage": job.kept_stage,
        "kept_reason": job.kept_reason,
        "flops": job.flops,
        "timed_seconds": job.timed_seconds,
        "results": results(run),
        "decoders": [row.report for row in queries.decoder_rows(run)],
        "artifacts": [
            {
                "kind": artifact.kind,
                "path": artifact.path,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256,
                "files": _files(settings().artifacts / artifact.path),
            }
            for artifact in queries.artifacts(run)
        ],
        "timings": timings | {"peak_bytes": job.peak_bytes},
        "environment": job.environment,
        "attempts": [
            {name: getattr(attempt, name) for name in ATTEMPT_FIELDS}
            for attempt in queries.attempts(run)
        ],
    }


def _files(path: Path) -> dict[str, int]:
    """Return the sizes of an artifact's files in bytes, by path below the artifact folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {
        str(file.relative_to(settings().artifacts)): file.stat().st_size
        for file in files[:ARTIFACT_FILES]
        if file.is_file()
    }


def sweep_record(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the record of a sweep: its runs, and every figure over seeds."""
    ids = [job.id for job in jobs]
    rows = sweep.table(jobs, queries.results(ids), queries.step_times(ids))
    return {
        "sweep": jobs[0].run,
        "fields": sweep.varied(jobs),
        "runs": [summary(job) for job in jobs],
        "table": [vars(row) | {"metric": str(row.metric)} for row in rows],
    }
