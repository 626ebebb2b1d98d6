"""What `benchmarks.pruning` measures of Slimscope: one pruning, and the whole of SDS."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.models.block_forward import open_stream
from backend.models.blocks import all_linears
from backend.pruning import block_work  # noqa: F401  (registers every pruner)
from backend.pruning.block_work import SDSRun
from backend.pruning.config import SDSConfig
from backend.pruning.plan import pruning_plan
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.sds import run_sds
from backend.pruning.stage_store import SDSStageStore
from backend.reporter import SilentReporter

PRECISION = {"bf16": "bfloat16", "fp32": "float32"}


@torch.no_grad()
def prune(model: Any, rows: Tensor, method: str, pattern: str, precision: str) -> float:
    """One pruning, with the pieces that the first pass of SDS is made of, and nothing beside it.

    Returns:
        CPU seconds spent in solving: factors, columns, masks.
    """
    config, dtype = SDSConfig(pattern=pattern), getattr(torch, PRECISION[precision])
    plan = pruning_plan(config, all_linears(model))
    store = SDSStageStore(Checkpoints(Path("/nowhere")))
    run = SDSRun(model, rows, config, plan, dtype, store, SilentReporter(), total_units=1)
    stream = open_stream(model, rows, config.batch, dtype)
    hidden, stream.hidden = stream.hidden, []
    solving = 0.0
    for block in range(run.blocks):
        linears = run.linears(block)
        seen, _ = run.collect_inputs(
            stream, block, linears, hidden, PRUNERS[method].needs, outputs=False
        )
        start = time.process_time()
        for module, linear in linears.items():
            inputs, how = seen[module], run.patterns[linear.name]
            linear.write(PRUNERS[method].prune(linear.read(), inputs, how, config.damping))
        solving += time.process_time() - start
        hidden = run.forward(stream, block, hidden)
    return solving


def run(model: Any, rows: Tensor, method: str, pattern: str, precision: str, **more: Any) -> None:
    """A run as people start it, with its statistics and its checkpoints; `more`: of its config."""
    choices = {"pattern": pattern, "base": method, "precision": PRECISION[precision], **more}
    with TemporaryDirectory() as folder:
        config = SDSConfig.model_validate(choices)
        plan = pruning_plan(config, all_linears(model))
        run_sds(model, rows, config, plan, Checkpoints(Path(folder)), SilentReporter())
