"""A run as plain data: what `--json` prints and what exports contain."""

from __future__ import annotations

import json
from typing import Any

from backend.store import queries
from backend.store.tables import Job


def summary(job: Job) -> dict[str, Any]:
    """What a list shows of a run. Times are UTC milliseconds since 1970."""
    return {
        "id": job.run,
        "kind": job.kind,
        "name": job.name,
        "owner": job.owner,
        "state": job.state,
        "desired": job.desired,
        "stage": job.stage,
        "progress": job.done / job.total if job.total else 0.0,
        "eta_s": job.eta_s,
        "config": job.config,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "error": job.error,
    }


def record(run: str | int) -> dict[str, Any]:
    """Everything that is known of a run.

    Raises:
        NotFound: there is no such run.
    """
    job = queries.job(run)
    found = queries.results([run])
    results = [
        {"stage": r.stage, "metric": r.metric, "value": r.value, "stderr": r.stderr, "n": r.n}
        | r.details
        for r in found
    ]
    timings = {
        r.metric.removeprefix("seconds/"): r.value for r in found if r.metric.startswith("seconds/")
    }
    tensors = json.loads(queries.tensor_table(run).to_json(orient="records") or "[]")
    return summary(job) | {
        "results": results,
        "tensors": tensors,
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
