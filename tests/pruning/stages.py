"""Helpers that stop and resume runs, and compare their stages."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.models.blocks import all_linears
from backend.models.loading import weights_hash
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.plan import PruningPlan, pruning_plan
from backend.pruning.sds import SDSResult, StageReader, run_sds
from backend.pruning.stage_store import install
from backend.reporter import Reporter, SilentReporter


def prune(
    model: PreTrainedModel,
    ids: Tensor,
    config: SDSConfig,
    work: Path | Checkpoints,
    reporter: Reporter | None = None,
    stored_dtype: torch.dtype = torch.float32,
    plan: PruningPlan | None = None,
    heldout_share: float = 0.125,
    reader: StageReader | None = None,
) -> SDSResult:
    """Execute a run, and make its plan if there is none. The kept stage is chosen on
    `heldout_share` of the ids."""
    checkpoints = work if isinstance(work, Checkpoints) else Checkpoints(work)
    plan, reporter = plan or pruning_plan(config, all_linears(model)), reporter or SilentReporter()
    fitted = len(ids) - min(len(ids) - 1, round(len(ids) * heldout_share))
    parts = ids[:fitted], ids[fitted:]
    return run_sds(
        model, parts[0], config, plan, checkpoints, reporter, stored_dtype, parts[1], reader
    )


def stage_hashes(model: PreTrainedModel, folder: Path, config: SDSConfig) -> dict[SDSStage, str]:
    """Map stage -> hash of the model's weights. The model ends with the last stage."""
    actual = {}
    for stage in config.stages:
        install(model, Checkpoints(folder), stage)
        actual[stage] = weights_hash(model)
    return actual
