"""Sparse-Dense-Sparse pruning (Li et al., COLING 2025), from a dense model to a sparse one.

    1   prune the dense model                                   first
    2   move all weights back towards the dense outputs         re-dense: easier to prune
    3a  prune the re-dense model                                second
    3b  adjust the remaining weights to the *original* outputs  sds
    4   optional: reconstruct block by block                    sds-blocks

3b and 4 are kept only if they lower the loss on held-out calibration segments. The result reports
cost and error of every stage, including the control (first pruning, adjusted under its mask):
without it the benefit of the dense detour would go untested.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import ConfigError
from backend.metric_key import MetricKey
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks
from backend.models.hidden_states import batches_in
from backend.models.loading import free_memory, weights_hash
from backend.models.memory import wait_on_disk
from backend.models.precision import resolve_dtype
from backend.pruning.block_work import SDSRun
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.heldout import choose, heldout_losses, split, verdict
from backend.pruning.layer_selection import layer_patterns
from backend.pruning.owl import allocated, block_shares, refuse_allocation
from backend.pruning.passes.block_pass import BlockPass
from backend.pruning.passes.outliers import OutlierPass
from backend.pruning.passes.pruning import FirstPass, SecondPass
from backend.pruning.passes.reconstruction import FirstReconstruction, SDSReconstruction
from backend.pruning.pattern import Pattern
from backend.pruning.stage_store import BlockReport, SDSStageStore, install
from backend.reporter import Reporter

__all__ = ["SDSResult", "install", "run_sds"]


@dataclass(frozen=True)
class SDSResult:
    """The result of a run.

    Attributes:
        kept: the stage that the model now holds.
        heldout: stage -> mean loss on the held-out segments, nats per token; empty without them.
        errors: stage -> relative output error, mean over all linears. The two passes measure on
            different inputs: compare stages within a pass only.
        zero_share: stage -> share of exact zeros among the prunable weights.
        seconds: step -> time. "inputs" are the calibration passes; solver steps count the blocks of
            all attempts, "checkpoints" and "heldout" only the last attempt.
        warnings: in the order in which they arose.
    """

    kept: SDSStage
    heldout: dict[SDSStage, float]
    errors: dict[SDSStage, float]
    zero_share: dict[SDSStage, float]
    seconds: dict[str, float]
    warnings: tuple[str, ...]


@torch.no_grad()
def run_sds(
    model: PreTrainedModel,
    calibration: Tensor,
    config: SDSConfig,
    checkpoints: Checkpoints,
    reporter: Reporter,
    stored: torch.dtype = torch.float32,
) -> SDSResult:
    """Prune `model` in place and leave every stage's weights in `checkpoints`.

    Deterministic for the same model, text, config, threads and machine, also when the run was
    stopped and resumed in between. To resume, load the dense model again.

    Args:
        model: dense, on the device to work on.
        calibration: token ids [segments, L], no padding.
        checkpoints: of this run alone; stored blocks are not computed again.
        stored: dtype the pruned weights are rounded to, that of the base model's files.

    Raises:
        ConfigError, ModelError: before any work.
        ComputeError: a solver failed; names the layer.
        CancelledError: cancellation was requested; all finished blocks are stored.
    """
    _require_calibration(calibration)
    refuse_allocation(config)
    patterns = layer_patterns(all_linears(model), config)
    linears = [linear for linear in all_linears(model) if linear.name in patterns]
    store = SDSStageStore(checkpoints)
    dtype = _claim_dtype(checkpoints, model, calibration, config, stored)
    fitted, heldout = split(calibration, config.holdout)
    units = sum(each.units(config) for each in _passes(config)) * len(linears)
    units += len(config.stages) * bool(len(heldout))
    passing = calibration if config.reconstruct else fitted
    new = batches_in(_hidden_state_folder(model, passing, dtype, config, checkpoints))
    run = SDSRun(
        model, fitted, config, dtype, store, reporter, patterns, units, new, stored, heldout
    )
    warnings = _log(reporter, _calibration_warnings(linears, fitted.numel()))
    for block_pass in _passes(config):
        block_pass(run).walk(run.blocks)
        if block_pass is OutlierPass:
            _allocate(run, linears)
    with run.timed("heldout"):
        losses = heldout_losses(run, checkpoints)
    kept = choose(losses, config)
    warnings += _log(reporter, verdict(losses, kept, config))
    install(model, checkpoints, kept)
    reports = [
        store.report(each.name, block) for each in _passes(config) for block in range(run.blocks)
    ]
    return _summary(reports, kept, losses, run.timed.seconds, warnings)


def _passes(config: SDSConfig) -> list[type[BlockPass]]:
    """The passes of a run, in order."""
    passes: dict[type[BlockPass], bool] = {
        OutlierPass: config.allocation == "owl",
        FirstPass: True,
        SecondPass: config.until == "sds",
        FirstReconstruction: SDSStage.FIRST_BLOCKS in config.stages,
        SDSReconstruction: SDSStage.SDS_BLOCKS in config.stages,
    }
    return [each for each, runs in passes.items() if runs]


def _allocate(run: SDSRun, linears: Sequence[LinearWeight]) -> None:
    """Give every block the sparsity that OWL assigns to it, and report it."""
    chosen, weights = allocated(linears, run.config), Counter[int]()
    for linear in chosen:
        weights[linear.block] += linear.shape[0] * linear.columns
    outliers = {block: run.store.report(OutlierPass.name, block).outliers for block in weights}
    shares = block_shares(outliers, weights, run.config)
    run.patterns |= {x.name: Pattern(0, 0, shares[x.block]) for x in chosen}
    for block, share in shares.items():
        for series, value in (("outliers", outliers[block]), ("sparsity", share)):
            run.reporter.metric(MetricKey("owl", series=series, axis="block"), value, block)
        run.reporter.log(f"OWL: {share:.2%} sparsity for block {block + 1}.")


def _hidden_state_folder(
    model: PreTrainedModel, rows: Tensor, dtype: torch.dtype, config: SDSConfig,
    checkpoints: Checkpoints,
) -> Path | None:  # fmt: skip
    """Folder of the hidden states between two blocks; None: keep them in memory."""
    width = model.config.get_text_config().hidden_size
    needed = 2 * config.streams * rows.numel() * width * dtype.itemsize
    on_disk = wait_on_disk(config.activations, needed, free_memory(model.device))
    return checkpoints.root if on_disk else None


def _log(reporter: Reporter, texts: list[str]) -> list[str]:
    """Log `texts` and return them."""
    for text in texts:
        reporter.log(text)
    return texts


def _claim_dtype(
    checkpoints: Checkpoints, model: PreTrainedModel, calibration: Tensor, config: SDSConfig,
    stored: torch.dtype,
) -> torch.dtype:  # fmt: skip
    """Bind the checkpoints to this model, text and config; the dtype of the forward passes, which
    the first call decides, so that a run resumed on another machine keeps it."""
    identity = f"{config.model_dump_json()} {weights_hash(model)}"
    identity += "" if stored == torch.float32 else f" {stored}"
    digest = hashlib.sha256(identity.encode())
    digest.update(calibration.cpu().contiguous().numpy().data)
    precision = checkpoints.claim(digest.hexdigest(), resolve_dtype(config.precision, model.device))
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def _summary(
    reports: Sequence[BlockReport],
    kept: SDSStage,
    heldout: dict[SDSStage, float],
    more_seconds: Mapping[str, float],
    more_warnings: Sequence[str],
) -> SDSResult:
    """Merge the reports of all blocks with what was measured after them."""
    errors = defaultdict[SDSStage, list[float]](list)
    seconds = defaultdict[str, float](float, more_seconds)
    zeros, weights = Counter[str](), Counter[str]()
    for report in reports:
        for step, spent in report.seconds.items():
            seconds[step] += spent
        zeros.update(report.zeros)
        weights.update(dict.fromkeys(report.zeros, report.weights))
        for stage, by_module in report.errors.items():
            errors[SDSStage(stage)] += by_module.values()
    return SDSResult(
        kept=kept,
        heldout=heldout,
        errors={stage: fmean(values) for stage, values in errors.items()},
        zero_share={SDSStage(stage): zeros[stage] / weights[stage] for stage in zeros},
        seconds=dict(seconds),
        warnings=(*(text for report in reports for text in report.warnings), *more_warnings),
    )


def all_linears(model: PreTrainedModel) -> list[LinearWeight]:
    """Every linear layer of every block, in order."""
    blocks = range(len(decoder_blocks(model)))
    return [linear for block in blocks for linear in block_linears(model, block).values()]


def _require_calibration(calibration: Tensor) -> None:
    """Reject calibration text of the wrong shape.

    Raises:
        ConfigError: not token ids [segments, tokens], or fewer than two tokens.
    """
    if calibration.dim() != 2 or not len(calibration) or calibration.shape[1] < 2:
        raise ConfigError(
            f"The calibration text has shape {list(calibration.shape)}.",
            "Calibration needs at least one segment of two tokens.",
            "Pass token ids of shape [segments, tokens].",
        )


def _calibration_warnings(linears: Sequence[LinearWeight], tokens: int) -> list[str]:
    """A warning when there are fewer calibration tokens than twice a layer's inputs."""
    widest = max(linears, key=lambda linear: linear.shape[1])
    if tokens >= 2 * widest.shape[1]:
        return []
    return [
        f"Only {tokens} calibration tokens for {widest.shape[1]} inputs of {widest.name}: use at "
        "least twice as many tokens as inputs. Add segments or a longer context."
    ]
