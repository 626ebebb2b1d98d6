"""A run or a sweep as plain data, with all that is known of it."""

from collections.abc import Sequence
from typing import Any

from backend.queue.scheduling import awaited
from backend.store import queries
from backend.store.tables import Job
from jobs import sweep
from jobs.reproduction import reproduced
from jobs.summary import results, summary, tensors

ATTEMPT_FIELDS = ("n", "outcome", "exit_code", "resumed_from")


def record(run: str | int) -> dict[str, Any]:
    job = queries.job(run)
    timings: dict[str, Any] = {t.step: t.seconds for t in queries.step_times([run])}
    repeats = reproduced(job)
    return summary(job) | {
        "reproduce": repeats.record() if repeats else None,
        "waits_for": [other.run for other in awaited([job.id]).get(job.id, [])],
        "kept_stage": job.kept_stage,
        "kept_reason": job.kept_reason,
        "flops": job.flops,
        "timed_seconds": job.timed_seconds,
        "results": results(run),
        "decoders": [row.report for row in queries.decoder_rows(run)],
        "tensors": tensors(run),
        "artifacts": [
            {"kind": a.kind, "path": a.path, "bytes": a.bytes, "sha256": a.sha256}
            for a in queries.artifacts(run)
        ],
        "timings": timings | {"peak_bytes": job.peak_bytes},
        "environment": job.environment,
        "attempts": [
            {name: getattr(attempt, name) for name in ATTEMPT_FIELDS}
            for attempt in queries.attempts(run)
        ],
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
