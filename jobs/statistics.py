"""The weights of a model as they are, as a job: statistics of every prunable matrix, no text, no
forward pass. The model is read block by block and never held as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from backend.errors import ModelRefused
from backend.models.catalogue import inspect
from backend.models.estimate import RUNTIME, memory_available, refuse_beyond
from backend.models.facts import ModelFacts
from jobs.kinds import Estimate, JobConfig, Kind
from jobs.pace import seconds_for

if TYPE_CHECKING:
    from torch import Tensor

    from backend.models.weights import StoredLinears
    from jobs.context import JobContext

NAME, DENSE = "statistics", "dense"
WORK_PER_WEIGHT = 700.0  # floating-point operations that take as long as sorting and counting one
COPIES = 6  # of the largest matrix: as stored, float32, sorted, and what is being computed


class StatisticsJob(JobConfig):
    """A model to look at."""

    model: str = Field(
        "smollm2-135m",
        min_length=1,
        max_length=300,
        title="Model",
        description="A name from the list, a hub id (org/name), a folder, or a .gguf file.",
    )

    @field_validator("model")
    @classmethod
    def _absolute(cls, spec: str) -> str:
        """A path means the same wherever the job runs."""
        spec = spec.strip()
        return str(Path(spec).expanduser().resolve()) if spec.startswith((".", "~")) else spec


def check(config: StatisticsJob) -> Estimate:
    """Refuses what cannot be read; tells what the rest will cost."""
    facts = inspect(config.model)
    needed = RUNTIME + 4 * COPIES * max(x.rows * x.columns for x in facts.linears)
    refuse_beyond(needed, memory_available(), facts.title)
    seconds, basis = seconds_for(NAME, config.model, work(facts))
    return Estimate(seconds, needed, work(facts), basis)


def work(facts: ModelFacts) -> float:
    """What the job costs, as floating-point operations."""
    return WORK_PER_WEIGHT * sum(x.rows * x.columns for x in facts.linears)


def run(config: StatisticsJob, context: JobContext) -> None:
    """Measures block after block; a block that an earlier attempt has measured is not read."""
    from backend.models.sources import materialise
    from backend.models.weights import StoredLinears
    from jobs.environment import prepare

    device = prepare(config, context)
    folder = materialise(config.model, context.log)
    facts = inspect(config.model)
    stored = StoredLinears(folder, facts.linears)
    zeros = 0
    for block in range(facts.blocks):
        context.progress(block, facts.blocks, f"Block {block + 1} of {facts.blocks}")
        zeros += measured(stored, block, device, context)
    weights = sum(x.rows * x.columns for x in facts.linears)
    context.result(DENSE, "zero_share", zeros / weights)
    context.result("run", "work", work(facts))
    context.log(f"Measured {len(facts.linears)} matrices, {weights:,} weights.")


def measured(stored: StoredLinears, block: int, device: str, context: JobContext) -> int:
    """How many exact zeros a block holds; reports its figures unless an earlier attempt has."""
    from backend.reporter import stop_if_asked
    from backend.statistics.reference import Reference

    name = f"block-{block:03d}"
    if found := context.checkpoints.find(name):
        return int(json.loads((found / "block.json").read_text())["zeros"])
    zeros = 0
    with context.checkpoints.write(name) as draft:
        for linear, weight in stored.block(block, device):
            stop_if_asked(context)
            taken = Reference(finite(linear.name, weight)).measure(
                weight,
                tensor=f"{linear.name}.weight",
                block=block,
                module=linear.module,
                stage=DENSE,
            )
            taken.report(context)
            zeros += taken.snapshot.zeros
        (draft / "block.json").write_text(json.dumps({"zeros": zeros}))
    return zeros


def finite(name: str, weight: Tensor) -> Tensor:
    """`weight` itself.

    Raises:
        ModelRefused: it holds values that are not finite.
    """
    if not weight.isfinite().all():
        raise ModelRefused(
            f"{name} holds values that are not finite.",
            "The file is damaged or was saved by a training run that diverged.",
            "Choose another copy of the model.",
            field="model",
        )
    return weight


KINDS = (
    Kind(
        name=NAME,
        title="Weight statistics",
        summary="Look at a model's weights as they are: no text, no forward pass, little memory.",
        config=StatisticsJob,
        check=check,
        run=run,
        stages={DENSE: "As stored"},  # it may be a pruned one
    ),
)
