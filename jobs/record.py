"""A run as plain data: what `--json` prints, what the API answers, what exports contain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from backend.queue.dependencies import awaited
from backend.store import queries
from backend.store.tables import Job
from jobs import sweep
from jobs.reproduction import reproduced


def summary(job: Job) -> dict[str, Any]:
    """What a list shows of a run. Times are UTC milliseconds since 1970."""
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


def results(run: str | int) -> list[dict[str, Any]]:
    """The figures a run ended with."""
    return [
        {"stage": r.stage, "metric": str(r.metric), "value": r.value, "stderr": r.stderr, "n": r.n}
        | r.details
        for r in queries.results([run])
    ]


def tensors(run: str | int) -> list[dict[str, Any]]:
    """The statistics of a run's tensors; JSON has no NaN, so it becomes null."""
    return [{key: _finite(value) for key, value in row.items()} for row in queries.tensor_rows(run)]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def record(run: str | int) -> dict[str, Any]:
    """Everything that is known of a run.

    Raises:
        NotFoundError: there is no such run.
    """
    job = queries.job(run)
    timings: dict[str, Any] = {t.step: t.seconds for t in queries.step_times([run])}
    repeats = reproduced(job)
    return summary(job) | {
        "reproduce": repeats.record() if repeats else None,
        "waits_for": [other.run for other in awaited([job.id]).get(job.id, [])],
        "kept_stage": job.kept_stage,
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
            {
                "n": a.n,
                "outcome": a.outcome,
                "exit_code": a.exit_code,
                "resumed_from": a.resumed_from,
            }
            for a in queries.attempts(run)
        ],
    }


def sweep_rows(jobs: Sequence[Job]) -> list[sweep.SweepRow]:
    """Every figure of a sweep, over seeds."""
    ids = [job.id for job in jobs]
    return sweep.table(jobs, queries.results(ids), queries.step_times(ids))


def sweep_record(jobs: Sequence[Job]) -> dict[str, Any]:
    """A sweep as plain data: its runs, and every figure over seeds."""
    return {
        "sweep": jobs[0].run,
        "fields": sweep.varied(jobs),
        "runs": [summary(job) for job in jobs],
        "table": [vars(row) | {"metric": str(row.metric)} for row in sweep_rows(jobs)],
    }
