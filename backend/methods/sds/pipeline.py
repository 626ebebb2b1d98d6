"""Sparse-Dense-Sparse pruning (Li et al., COLING 2025), from a dense model to a sparse one.

    1   prune the dense model                                   first
    2   let all weights move back towards the dense outputs     re-dense: easier to prune
    3a  prune the re-dense model                                second
    3b  adjust what stayed towards the *original* outputs       sds

3b stays only if it pays on calibration segments that were held out. The result names what every
stage cost and won, the control (first pruning, adjusted under its mask) included: without it the
detour over the dense model would not be tested.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.methods.sds.checks import all_linears, refuse_text, shortage
from backend.methods.sds.config import SDSConfig
from backend.methods.sds.heldout import choose, heldout_losses, split, verdict
from backend.methods.sds.layer_selection import layer_patterns
from backend.methods.sds.owl import allocated, block_shares, refuse_allocation
from backend.methods.sds.passes import BlockPass, FirstPass, OutlierPass, SecondPass
from backend.methods.sds.pattern import Pattern
from backend.methods.sds.result import SDSResult, summary
from backend.methods.sds.run import SDSRun
from backend.methods.sds.stage_store import SDSStageStore, install
from backend.models.blocks import LinearWeight
from backend.models.hidden_states import batches_in
from backend.models.loading import free_memory, weights_hash
from backend.models.memory import wait_on_disk
from backend.models.precision import resolve_dtype
from backend.reporter import Reporter

__all__ = ["install", "run_sds"]


@torch.no_grad()
def run_sds(
    model: PreTrainedModel,
    calibration: Tensor,
    config: SDSConfig,
    checkpoints: Checkpoints,
    reporter: Reporter,
) -> SDSResult:
    """Prunes `model` in place and leaves every stage's weights in `checkpoints`.

    Same model, text, config and threads on the same machine: the same weights, whether or not the
    run was stopped and resumed in between. To resume, load the dense model anew.

    Args:
        model: dense, on the device to work on.
        calibration: token ids [segments, L], no padding.
        checkpoints: of this run alone; what is there already is not done again.

    Raises:
        ConfigRefused, ModelRefused: before any work.
        MethodFailed: the computation could not go on; says in which layer.
        Stopped: the reporter asked for it; all finished blocks are stored.
    """
    refuse_text(calibration)
    refuse_allocation(config)
    patterns = layer_patterns(all_linears(model), config)
    linears = [linear for linear in all_linears(model) if linear.name in patterns]
    store = SDSStageStore(checkpoints)
    dtype = _settled_dtype(store, model, calibration, config)
    fitted, held = split(calibration, config.holdout)
    units = sum(walk.units for walk in _walks(config)) * len(linears)
    units += len(config.stages) * bool(len(held))
    new = batches_in(_folder_for_states(model, fitted, dtype, config, checkpoints))
    run = SDSRun(model, fitted, config, dtype, store, reporter, patterns, units, new)
    warnings = _said(reporter, shortage(linears, fitted.numel()))
    for walk in _walks(config):
        walk(run).walk()
        if walk is OutlierPass:
            _allocate(run, linears)
    with run.timed("heldout"):
        losses = heldout_losses(run, checkpoints, held)
    kept = choose(losses, config)
    warnings += _said(reporter, verdict(losses, kept, config))
    install(model, checkpoints, kept)
    facts = [
        store.facts(walk.name, block) for walk in _walks(config) for block in range(run.blocks)
    ]
    return summary(facts, kept, losses, run.timed.seconds, warnings)


def _walks(config: SDSConfig) -> list[type[BlockPass]]:
    """The walks of a run, in order."""
    walks: list[type[BlockPass]] = [OutlierPass] if config.allocation == "owl" else []
    return [*walks, FirstPass, *([SecondPass] if config.until == "sds" else [])]


def _allocate(run: SDSRun, linears: Sequence[LinearWeight]) -> None:
    """Gives every block the share that OWL finds for it, and says so."""
    chosen, weights = allocated(linears, run.config), Counter[int]()
    for linear in chosen:
        weights[linear.block] += linear.shape[0] * linear.columns
    outliers = {block: run.store.facts(OutlierPass.name, block).outliers for block in weights}
    shares = block_shares(outliers, weights, run.config)
    run.patterns |= {x.name: Pattern(0, 0, shares[x.block]) for x in chosen}
    for block, share in shares.items():
        run.reporter.metric("owl/outliers", outliers[block], block)
        run.reporter.metric("owl/sparsity", share, block)
        run.reporter.log(f"OWL: {share:.2%} of block {block + 1} go.")


def _folder_for_states(
    model: PreTrainedModel, rows: Tensor, dtype: torch.dtype, config: SDSConfig,
    checkpoints: Checkpoints,
) -> Path | None:  # fmt: skip
    """Where hidden states wait; None: in memory."""
    streams = 1 if config.inputs == "sd" else 2
    width = model.config.get_text_config().hidden_size
    needed = 2 * streams * rows.numel() * width * dtype.itemsize
    on_disk = wait_on_disk(config.activations, needed, free_memory(model.device))
    return checkpoints.root if on_disk else None


def _said(reporter: Reporter, texts: list[str]) -> list[str]:
    """`texts`, after they were logged."""
    for text in texts:
        reporter.log(text)
    return texts


def _settled_dtype(
    store: SDSStageStore, model: PreTrainedModel, calibration: Tensor, config: SDSConfig
) -> torch.dtype:
    """The dtype of the forward passes; ties the checkpoints to this model, text and config."""
    digest = hashlib.sha256(f"{config.model_dump_json()} {weights_hash(model)}".encode())
    digest.update(calibration.cpu().contiguous().numpy().data)
    precision = store.claim(digest.hexdigest(), resolve_dtype(config.precision, model.device))
    dtype: torch.dtype = getattr(torch, precision)
    return dtype
