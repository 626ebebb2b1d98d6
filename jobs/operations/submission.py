"""Operations that submit runs."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from backend.queue import permissions, scheduling
from backend.queue.actor import Actor
from backend.queue.service import MAX_PRIORITY
from backend.store import queries
from backend.store.states import State
from jobs import pipeline as pipelines
from jobs import reproduction, submit
from jobs import sweep as sweeps
from jobs.kind import get_kind
from jobs.operations.changes import is_resumable
from jobs.operations.registry import Button, Record, Run, operation
from jobs.record import summary

Priority = Annotated[
    int,
    Field(description=f"-{MAX_PRIORITY} to {MAX_PRIORITY}. Higher priorities start first."),
]
Name = Annotated[str, Field(max_length=120, description="Name of the run.")]
Preset = Annotated[str, Field(description="Preset of the kind that the config is based on.")]
Config = Annotated[Mapping[str, Any], Field(description="Settings that differ from the preset.")]


@operation(
    "submit-run", writes=True, access="guest", path="/submit/{kind}", command=False, status=201
)
def submit_run(
    kind: str,
    config: Config,
    actor: Actor,
    preset: Preset = "",
    name: Name = "",
    priority: Priority = 0,
) -> Record:
    """Add a run to the queue. The config holds the settings that differ from preset or defaults."""
    values = {**get_kind(kind).preset(preset), **config}
    job = submit.submit(kind, values, actor, name=name, priority=priority)
    return summary(job) | {"place": scheduling.status().position(job.id)}


@operation(
    "submit-sweep", writes=True, access="guest", path="/sweeps/{kind}", command=False, status=201
)
def submit_sweep(
    kind: str,
    config: Config,
    sweep: Mapping[str, str],
    actor: Actor,
    preset: Preset = "",
    name: Name = "",
    priority: Priority = 0,
) -> list[Record]:
    """Add a run for each combination of values, such as {"pattern": "2:4,70%", "seed": "0..2"}. If
    one is invalid, none is added."""
    values = {**get_kind(kind).preset(preset), **config}
    swept = sweeps.read(kind, sweep.items())
    jobs = sweeps.queue(kind, values, swept, actor, name=name, priority=priority)
    return [summary(job) for job in jobs]


@operation(
    "submit-pipeline",
    writes=True,
    path="/pipelines",
    command=False,
    status=201,
    action="queue a pipeline",
)
def submit_pipeline(
    pipeline: Mapping[str, Any], actor: Actor, priority: Priority = 0
) -> list[Record]:
    """Add several runs, each on the output of the previous one. Example of a pipeline: {"model":
    "toy", "steps": [{"sds": {"pattern": "2:4"}}, {"dlqat": {"bits": 4}}]}."""
    text = json.dumps(pipeline, ensure_ascii=False)  # YAML has no surrogate pairs
    jobs = pipelines.queue(pipelines.read(text), actor, priority=priority)
    return [summary(job) for job in jobs]


@operation(
    "reproduce",
    writes=True,
    access="guest",
    tool="reproduce_run",
    adds_runs=True,
    may_not=lambda actor, _: permissions.may_not_add(actor),
    as_text=lambda run: f"{run['id']} is queued; it repeats {queries.job(run['parent']).run}.",
    buttons=(
        Button("retry", "Retry", is_resumable, group="queue", bulk=False),
        Button(
            "reproduce",
            "Reproduce",
            group="queue",
            bulk=False,
            applies_to=lambda job: job.state == State.SUCCEEDED and not job.removed_at,
        ),
    ),
)
def reproduce_run(run: Run, actor: Actor) -> Record:
    """Repeat a run with its original config, settings and texts, and compare the two."""
    return summary(reproduction.reproduce(run, actor))
