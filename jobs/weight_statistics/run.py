"""Weight statistics job: measures every matrix of the blocks, without text or forward passes. The
model is read block by block, so it need not fit into memory."""

import json

from backend.export.reading import StoredLinears, linears_in
from backend.models.block_offload import check_finite
from backend.models.sources.catalog import inspect, materialize
from backend.reporter import at_block, stop_if_asked
from backend.statistics.reference import ReferenceTensor
from jobs.fields.models import resolve_model
from jobs.metrics import ZERO_SHARE
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.weight_statistics.kind import DENSE, StatisticsJob, work


def run(config: StatisticsJob, context: JobContext) -> None:
    """Run the measurement. Blocks measured by an earlier attempt are skipped."""
    device = prepare(config, context)
    source = resolve_model(config.model, reads=False).source
    folder = materialize(source, context.log)
    facts = inspect(source)
    linears = linears_in(folder, facts, facts.matrices)
    context.phases(work(facts))
    zeros = 0
    for block in range(facts.blocks):
        context.progress(block, facts.blocks, at_block(block, facts.blocks))
        zeros += measure_block(linears, block, device, context)
    weights = sum(matrix.weights for matrix in facts.matrices)
    context.result(DENSE, ZERO_SHARE, zeros / weights)
    context.log(f"Measured {len(facts.matrices)} matrices, {weights:,} weights.")


def measure_block(linears: StoredLinears, block: int, device: str, context: JobContext) -> int:
    """Report the statistics of a block, unless an earlier attempt has reported them. Return the
    number of exact zeros in the block."""
    name = f"block-{block:03d}"
    if checkpoint := context.checkpoints.find(name):
        return int(json.loads((checkpoint / "block.json").read_text())["zeros"])
    zeros = 0
    with context.checkpoints.write(name) as draft:
        for linear, weight in linears.block(block, device):
            stop_if_asked(context)
            check_finite(linear.name, weight)
            measurement = ReferenceTensor(weight).measure(
                weight,
                tensor=f"{linear.name}.weight",
                block=block,
                module=linear.module,
                stage=DENSE,
            )
            measurement.report(context)
            zeros += measurement.snapshot.zeros
        (draft / "block.json").write_text(json.dumps({"zeros": zeros}))
    return zeros
