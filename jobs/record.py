"""A run as plain data: what `--json` prints, what the API answers, what exports contain."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from backend.store import queries
from backend.store.tables import Job
from jobs.kind import kinds
from jobs.replay import replayed


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
        "progress": job.share or 0.0,
        "eta_s": job.eta_s,
        "config": job.config,
        "sweep": job.sweep,
        "parent": job.parent,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "error": job.error,
    }


def kinds_record() -> list[dict[str, Any]]:
    """What can be run: of each kind the presets and the JSON schema of its config."""
    return [
        {
            "name": kind.name,
            "title": kind.title,
            "summary": kind.summary,
            "presets": {name: dict(values) for name, values in kind.presets.items()},
            "schema": kind.config.model_json_schema(),
        }
        for kind in kinds().values()
    ]


def results(run: str | int) -> list[dict[str, Any]]:
    """The figures a run ended with."""
    return [
        {"stage": r.stage, "metric": r.metric, "value": r.value, "stderr": r.stderr, "n": r.n}
        | r.details
        for r in queries.results([run])
    ]


def plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON has it, one object a row; what is not a number becomes null."""
    return json.loads(table.to_json(orient="records") or "[]")


def record(run: str | int) -> dict[str, Any]:
    """Everything that is known of a run.

    Raises:
        NotFound: there is no such run.
    """
    job = queries.job(run)
    found = results(run)
    timings = {
        r["metric"].removeprefix("seconds/"): r["value"]
        for r in found
        if r["metric"].startswith("seconds/")
    }
    repeats = replayed(job)
    return summary(job) | {
        "replay": repeats.record() if repeats else None,
        "results": found,
        "tensors": plain(queries.tensor_table(run)),
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
