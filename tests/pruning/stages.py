"""Helpers that stop and resume runs, and compare their stages."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import CancelledError
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
    chosen: SDSConfig,
    work: Path | Checkpoints,
    reporter: Reporter | None = None,
    stored: torch.dtype = torch.float32,
    plan: PruningPlan | None = None,
    held: float = 0.125,
    reader: StageReader | None = None,
) -> SDSResult:
    """Plans a run, if it has no plan yet, and executes it; `held`: share of the ids to choose the
    kept stage by."""
    checkpoints = work if isinstance(work, Checkpoints) else Checkpoints(work)
    plan, reporter = plan or pruning_plan(chosen, all_linears(model)), reporter or SilentReporter()
    fitted = len(ids) - min(len(ids) - 1, round(len(ids) * held))
    parts = ids[:fitted], ids[fitted:]
    return run_sds(model, parts[0], chosen, plan, checkpoints, reporter, stored, parts[1], reader)


def cut_short(
    model: Callable[[], PreTrainedModel],
    ids: Tensor,
    chosen: SDSConfig,
    folder: Path,
    counts: Sequence[int],
    recorder: Callable[..., Any],
) -> list[tuple[str, float, int]]:
    """Attempts of one run, each stopped once so many blocks are stored; the metrics they told."""
    metrics = []
    for count in counts:
        stop = recorder(stop=lambda _, n=count: len([*folder.glob("*-0*")]) >= n)
        with pytest.raises(CancelledError):
            prune(model(), ids, chosen, folder, stop)
        metrics += stop.metrics
    return metrics


def stage_hashes(model: PreTrainedModel, folder: Path, chosen: SDSConfig) -> dict[SDSStage, str]:
    """Stage -> hash of the model's weights at it; `model` ends as the last stage."""
    actual = {}
    for stage in chosen.stages:
        install(model, Checkpoints(folder), stage)
        actual[stage] = weights_hash(model)
    return actual
