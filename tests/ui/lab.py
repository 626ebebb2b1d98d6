"""Rows for the tests of tables, comparisons and pictures of several runs."""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

from backend.metric_key import MetricKey
from backend.queue.artifacts import run_folder
from backend.store.states import Lane
from backend.store.tables import Artifact, Event, Job, MetricPoint, Result, Table

HOST, GUEST = ("127.0.0.1", "localhost:7860"), ("10.0.0.7", "lab:7860")
TEXT = {"corpus": "toystories", "sha256": "a" * 64, "context": 256, "windows": 16}
OTHER = TEXT | {"sha256": "b" * 64, "context": 128}


def asked(who: tuple[str, str] = HOST, **query: str) -> Any:
    """What a page is asked: the address, and by whom."""
    client, name = who
    return SimpleNamespace(
        query_params=query, client=SimpleNamespace(host=client), headers={"host": name}
    )


def pressed(do: str, run: str = "", text: str = "", file: str = "") -> Any:
    """What a board sends."""
    return SimpleNamespace(_data={"do": do, "run": run, "text": text, "file": file})


def job(number: int, **values: Any) -> Job:
    row = {
        "id": number,
        "kind": "sds",
        "name": f"run {number}",
        "owner": "mira",
        "state": "succeeded",
        "lane": Lane.SLOTS,
        "config": {"model": "toy", "pattern": "2:4", "base": "wanda", "seed": 0, "control": True},
        "config_hash": "",
        "created_at": number * 1000,
        "queued_at": number * 1000,
        "started_at": 0,
        "finished_at": 60_000,
        "tags": [],
        "note": "",
        "environment": {},
    }
    ended = {"kept_stage": "sds", "flops": 1e12} if (row | values)["state"] == "succeeded" else {}
    return Job(**(row | ended | values))


def result(number: int, stage: str, metric: object, value: float, **details: Any) -> Result:
    """A figure of a metric or of the one of that name."""
    key = MetricKey.parse(str(metric))
    named = {"stage": stage, "family": key.family, "series": key.series}
    return Result(job_id=number, **named, value=value, details=details)


def point(number: int, name: str, step: int, value: float, axis: str = "step") -> MetricPoint:
    """A point of the curve of that name."""
    key = asdict(replace(MetricKey.parse(name), axis=axis))
    return MetricPoint(job_id=number, **key, step=step, at=0, value=value)


def measured(
    number: int,
    final: float,
    zeros: float = 0.5,
    *,
    dense: float = 10.0,
    text: dict[str, Any] = TEXT,
) -> list[Result]:
    """The figures of an SDS run."""
    return [
        result(number, "dense", "perplexity", dense, **text),
        result(number, "sds", "perplexity", final, **text),
        result(number, "control", "perplexity", final + 1, **text),
        result(number, "sds", "zero_share", zeros),
        result(number, "sds", "heldout_loss", final / 10),
    ]


def model_folder(number: int, size: int) -> Artifact:
    """The row of a model that is there."""
    saved_folder(f"sds-{number:04d}", "model")
    return Artifact(
        job_id=number, kind="model", path=f"sds-{number:04d}/model", bytes=size, created_at=0
    )


def saved_folder(run: str, what: str) -> None:
    """The "model" or "drafter" of a run is there."""
    folder = run_folder(run) / what
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")


def store(*rows: Table) -> None:
    """Writes rows, the jobs first, with an event for each, as the queue does."""
    from backend.store.session import now_ms, writing

    jobs = [row for row in rows if isinstance(row, Job)]
    events = [Event(job_id=j.id, at=now_ms(), type="queued", actor="mira") for j in jobs]
    with writing() as session:
        session.add_all(jobs)
        session.flush()
        session.add_all([*(row for row in rows if not isinstance(row, Job)), *events])
