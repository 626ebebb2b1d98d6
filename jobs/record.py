"""A run or a sweep as plain data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.queue import scheduling
from backend.queue.dependencies import awaited
from backend.settings import settings
from backend.store import queries
from backend.store.tables import Job
from jobs import sweep
from jobs.reproduction import reproduced
from jobs.summary import results, summary

ARTIFACT_FILES = 1000  # of one artefact that are listed
ATTEMPT_FIELDS = ("n", "outcome", "exit_code", "resumed_from")


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
    """Files of an artefact, by their path below the artefact folder, with their sizes in bytes."""
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
