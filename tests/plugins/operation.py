"""Operations in one file: one for hosts that changes a run, and one that anybody may ask."""

from typing import Annotated, Any

from pydantic import Field

from backend.queue import labels
from backend.queue.actor import Actor
from backend.store import queries
from jobs.operations.registry import Button, Run, operation


@operation(
    "star",
    writes=True,
    action="star a run",
    as_text=lambda run: f"{run['id']} has a star.",
    buttons=(Button("star", "Star", lambda job: job.id > 0),),
)
def star(
    run: Run, actor: Actor, stars: Annotated[int, Field(ge=1, le=5, description="How many.")] = 1
) -> dict[str, Any]:
    """Star a run."""
    labels.edit([run], actor, add=[f"stars-{stars}"])
    return {"id": queries.job(run).run, "stars": stars}


@operation("longest-name")
def longest_name() -> dict[str, Any]:
    """The longest name of a run."""
    return {"name": max((job.name for job in queries.jobs()), key=len, default="")}
