"""The weights of a model as they are, as a job: statistics of every prunable matrix, no text, no
forward pass. The model is read block by block and never held as a whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME, memory_available, refuse_beyond
from backend.models.sources.catalogue import inspect
from jobs.fields.model import ModelConfig
from jobs.kind import Estimate, JobConfig, Kind
from jobs.runtime.costs import LOOKING
from jobs.runtime.duration import estimate_seconds

if TYPE_CHECKING:
    from backend.models.stored_weights import StoredLinears
    from jobs.runtime.context import JobContext

NAME, DENSE = "statistics", "dense"
COPIES = 6  # of the largest matrix: as stored, float32, sorted, and what is being computed


class StatisticsJob(ModelConfig, JobConfig):
    """A model to look at."""


def check(config: StatisticsJob) -> Estimate:
    """Refuses what cannot be read; tells what the rest will cost."""
    facts = inspect(config.model)
    needed = RUNTIME + 4 * COPIES * max(x.weights for x in facts.linears)
    refuse_beyond(needed, memory_available(), facts.title)
    seconds, basis = estimate_seconds(NAME, config.model, work(facts))
    return Estimate(seconds, needed, work(facts), basis)


def work(facts: ModelFacts) -> float:
    """What the job costs, as floating-point operations."""
    return LOOKING * facts.linear_weights


def run(config: StatisticsJob, context: JobContext) -> None:
    """Measures block after block; a block that an earlier attempt has measured is not read."""
    from backend.models.sources.materialise import materialise
    from backend.models.stored_weights import StoredLinears
    from jobs.runtime.environment import prepare

    device = prepare(config, context)
    folder = materialise(config.model, context.log)
    facts = inspect(config.model)
    stored = StoredLinears(folder, facts.linears)
    zeros = 0
    for block in range(facts.blocks):
        context.progress(block, facts.blocks, f"Block {block + 1} of {facts.blocks}")
        zeros += measured(stored, block, device, context)
    weights = facts.linear_weights
    context.result(DENSE, "zero_share", zeros / weights)
    context.result("run", "work", work(facts))
    context.log(f"Measured {len(facts.linears)} matrices, {weights:,} weights.")


def measured(stored: StoredLinears, block: int, device: str, context: JobContext) -> int:
    """How many exact zeros a block holds; reports its figures unless an earlier attempt has."""
    from backend.models.block_offload import refuse_not_finite
    from backend.reporter import stop_if_asked
    from backend.statistics.reference import ReferenceTensor

    name = f"block-{block:03d}"
    if found := context.checkpoints.find(name):
        return int(json.loads((found / "block.json").read_text())["zeros"])
    zeros = 0
    with context.checkpoints.write(name) as draft:
        for linear, weight in stored.block(block, device):
            stop_if_asked(context)
            refuse_not_finite(linear.name, weight)
            taken = ReferenceTensor(weight).measure(
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


KINDS = (
    Kind(
        name=NAME,
        title="Weight statistics",
        summary="Look at a model's weights as they are: no text, no forward pass, little memory.",
        config=StatisticsJob,
        check=check,
        run=run,
        of_models=False,
        stages={DENSE: "As stored"},  # it may be a pruned one
    ),
)
