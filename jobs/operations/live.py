"""Operations on states of live models."""

from typing import Annotated, Any

from pydantic import Field

from backend.live.address import LONGEST
from jobs.fields.base_model import resolve_model
from jobs.operations.registry import Record, operation
from jobs.serving.live.plan import Effort, planned_steps
from jobs.submit import checked, command_line


def _steps_text(steps: list[Record]) -> str:
    return "\n".join(step["command"] for step in steps)


@operation("plan-state", path="/plan-state", tool="", said=_steps_text)
def plan_state(
    model: Annotated[str, Field(max_length=300, description="The model of the state.")],
    state: Annotated[str, Field(max_length=LONGEST, description="The address of a state.")],
    effort: Annotated[
        Effort, Field(description="one-shot: pruned and rounded alone. full: SDS and DL-QAT.")
    ] = "full",
) -> list[Record]:
    """The runs that make the state of a live model properly, one on the other: kind, config, time
    and memory. They work as the steps of a pipeline."""
    facts = resolve_model(model).facts
    return [_step(kind, config) for kind, config in planned_steps(model, facts, state, effort)]


def _step(kind: str, config: dict[str, Any]) -> Record:
    """Refuses what cannot run, as the form does."""
    _, estimate = checked(kind, config)
    return {
        "kind": kind, "config": config, "seconds": estimate.seconds, "bytes": estimate.bytes,
        "warnings": [*estimate.warnings], "command": command_line(kind, config),
    }  # fmt: skip
