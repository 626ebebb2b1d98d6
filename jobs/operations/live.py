"""Operations on states of live models."""

from typing import Annotated, Any

from pydantic import Field

from backend.live.address import MOST_TOKENS, WORKBENCH, Address, QueuedState, Ratio
from backend.queue.actor import Actor
from jobs import pipeline as pipelines
from jobs.fields.models import resolve_model
from jobs.operations.registry import Record, operation
from jobs.serving.live.plan import Effort, planned_steps
from jobs.submit import checked, command_line, submit
from jobs.summary import summary

Model = Annotated[str, Field(min_length=1, max_length=300, description="The model of the state.")]
State = Annotated[Address, Field(description="The address of a state.")]
Made = Annotated[
    Effort, Field(description="one-shot: pruned and rounded alone. full: SDS and DL-QAT.")
]
Known = Annotated[
    Ratio | None, Field(description="Perplexity over dense, to be shown beside that of the run.")
]


@operation("plan-state", path="/plan-state", tool="",
           said=lambda steps: "\n".join(step["command"] for step in steps))  # fmt: skip
def plan_state(model: Model, state: State, effort: Made = "full") -> list[Record]:
    """The runs that make the state of a live model properly, one on the other: kind, config, time
    and memory. They work as the steps of a pipeline."""
    planned = planned_steps(resolve_model(model).facts, state, effort)
    return [_step(kind, {"model": model, **config}) for kind, config in planned]


@operation("queue-state", path="/queue-state", tool="", command=False, writes=True, who="guest",
           status=201)  # fmt: skip
def queue_state(
    model: Model,
    state: State,
    actor: Actor,
    effort: Made = "full",
    predicted: Known = None,
    live: Known = None,
    tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS, description="Measured live on.")] = 0,
) -> list[Record]:
    """Add the runs that `plan-state` tells to the queue. The last one keeps the state, and what was
    predicted and measured live of it."""
    planned = planned_steps(resolve_model(model).facts, state, effort)
    from_state = QueuedState(
        model=model, state=state, predicted=predicted, live=live, tokens=tokens if live else 0
    )
    known = {WORKBENCH: from_state.model_dump()}
    if len(planned) == 1:  # which guests may queue, too
        ((kind, config),) = planned
        return [summary(submit(kind, {"model": model, **config}, actor, known=known))]
    steps = [pipelines.Step(kind, "", config) for kind, config in planned]
    jobs = pipelines.queue(pipelines.Pipeline("", model, steps), actor, known=known)
    return [summary(job) for job in jobs]


def _step(kind: str, config: dict[str, Any]) -> Record:
    """Refuses what cannot run, as the form does."""
    _, estimate = checked(kind, config)
    return {
        "kind": kind, "config": config, "seconds": estimate.seconds, "bytes": estimate.bytes,
        "warnings": [*estimate.warnings], "command": command_line(kind, config),
    }  # fmt: skip
