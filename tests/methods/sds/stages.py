"""The stages of a run, to tell whether two of them are the same."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.methods.sds.config import SDSConfig, SDSStage
from backend.methods.sds.pipeline import install
from backend.models.loading import weights_hash


def stage_hashes(model: PreTrainedModel, folder: Path, chosen: SDSConfig) -> dict[SDSStage, str]:
    """Stage -> hash of the model's weights at it; `model` ends as the last stage."""
    found = {}
    for stage in chosen.stages:
        install(model, Checkpoints(folder), stage)
        found[stage] = weights_hash(model)
    return found
