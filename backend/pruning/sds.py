"""Sparse-Dense-Sparse pruning (Li et al., COLING 2025), from a dense model to a sparse one.

    1   prune the dense model                                   first
    2   move all weights back toward the dense outputs         re-dense: easier to prune
    3a  prune the re-dense model                                second
    3b  adjust the remaining weights to the *original* outputs  sds
    4   optional: reconstruct block by block                    sds-blocks

Of the pruned stages the one with the lowest loss on held-out text is kept
(`backend.calibration.kept_stage`). The result reports cost and error of every stage, including the
control (first pruning, adjusted under its mask): without it the benefit of the dense detour would
go untested."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.heldout import heldout_losses
from backend.calibration.kept_stage import KeptStage, choose
from backend.checkpoints import Checkpoints
from backend.errors import ComputeError, ConfigError, ModelError
from backend.metric_key import MetricKey
from backend.models.block_forward import batches_in
from backend.models.blocks import LinearWeight, all_linears, resolve_dtype
from backend.models.loading import free_memory, weights_hash
from backend.models.memory import wait_on_disk
from backend.models.threads import AtOnce, beside
from backend.pruning.block_work import SDSRun
from backend.pruning.config import CANDIDATES, STAGE_LABELS, SDSConfig, SDSStage, judged
from backend.pruning.passes import (
    BlockPass,
    FirstPass,
    FirstReconstruction,
    OutlierPass,
    SDSReconstruction,
    SecondPass,
)
from backend.pruning.pattern import Pattern
from backend.pruning.plan import PruningPlan, block_shares
from backend.pruning.stage_store import BlockReport, SDSStageStore, install
from backend.reporter import Reporter

PASSES: dict[str, type[BlockPass]] = {
    each.name: each
    for each in (OutlierPass, FirstPass, SecondPass, FirstReconstruction, SDSReconstruction)
}


class StageReader(Protocol):
    """What looks at the stages one after the other, while the model holds them."""

    def losses(self, stage: SDSStage, windows: Tensor) -> list[float]:
        """Nats per predicted token of each of the held-out `windows` [n, L]."""

    def is_missing(self, stage: SDSStage) -> bool:
        """Whether something of a stage is still to be measured."""

    def measure(self, stage: SDSStage) -> None:
        """Measure it, if anything is missing; the model is given another stage then."""


@dataclass(frozen=True)
class SDSResult:
    """The result of a run."""

    kept: SDSStage  # the stage that the model now holds
    reason: str  # why it is kept
    # stage of those `judged` -> mean loss on the held-out windows, nats per token
    heldout: dict[SDSStage, float]
    # stage -> relative output error, mean over all linears. The two passes measure on different
    # inputs: compare stages within a pass only
    errors: dict[SDSStage, float]
    zero_share: dict[SDSStage, float]  # stage -> share of exact zeros among the prunable weights
    # step -> time. "inputs" are the calibration passes; solver steps count the blocks of all
    # attempts, "checkpoints" and "heldout" only the last attempt
    seconds: dict[str, float]
    warnings: tuple[str, ...]  # in the order in which they arose


@torch.no_grad()
def run_sds(
    model: PreTrainedModel,
    calibration: Tensor,
    config: SDSConfig,
    plan: PruningPlan,
    checkpoints: Checkpoints,
    reporter: Reporter,
    stored: torch.dtype = torch.float32,
    heldout: Tensor | None = None,
    reader: StageReader | None = None,
) -> SDSResult:
    """Prune `model` in place as planned, and leave every stage's weights in `checkpoints`.

    Deterministic for the same model, text, config, threads and machine, also when the run was
    stopped and resumed in between. To resume, load the dense model again.

    Args:
        model: dense, on the device to work on.
        calibration: token ids [segments, L], no padding.
        checkpoints: of this run alone; stored blocks are not computed again.
        stored: dtype the pruned weights are rounded to, that of the base model's files.
        heldout: token ids [windows, L] to choose the kept stage by; None: no stage is compared.
        reader: of the stages; None: the model itself reads the held-out windows.

    Raises ConfigError, ModelError: before any work. ComputeError: a solver failed; names the layer.
    CancelledError: cancellation was requested; all finished blocks are stored."""
    heldout = calibration[:0] if heldout is None else heldout
    run = _begin(model, calibration, heldout, config, plan, checkpoints, reporter, stored)
    warnings, tokens = list[str](), calibration.numel()
    widest = max(_planned(model, plan), key=lambda linear: linear.columns)
    if tokens < 2 * widest.columns:
        warnings.append(
            f"Only {tokens} calibration tokens for {widest.columns} inputs of {widest.name}: use "
            "at least twice as many tokens as inputs. Add segments or a longer context."
        )
        reporter.log(warnings[0])
    try:
        for block_pass in (PASSES[name] for name in plan.passes):
            block_pass(run).walk(run.blocks)
            if block_pass is OutlierPass:
                _allocate(run)
    finally:
        with suppress(Exception):  # what is finished is stored, whatever ended the run
            run.settle()
        for executor in (run.statistics, run.storage):
            executor.shutdown(cancel_futures=True)
    losses = _read_stages(run, checkpoints, reader)
    made = [stage for stage in CANDIDATES if stage in plan.stages]
    by_name = {str(stage): each for stage, each in losses.items()}
    kept = choose(by_name, made, STAGE_LABELS, [SDSStage.CONTROL])
    reporter.log(kept.reason)
    install(model, checkpoints, SDSStage(kept.stage))
    reports = [run.store.report(name, n) for name in plan.passes for n in range(run.blocks)]
    return _summary(reports, kept, losses, run.timed.seconds, warnings)


def _begin(
    model: PreTrainedModel,
    calibration: Tensor,
    heldout: Tensor,
    config: SDSConfig,
    plan: PruningPlan,
    checkpoints: Checkpoints,
    reporter: Reporter,
    stored: torch.dtype,
) -> SDSRun:
    """The run, bound to its checkpoints; see `run_sds`."""
    if calibration.dim() != 2 or not len(calibration) or calibration.shape[1] < 2:
        raise ConfigError(
            f"The calibration text has shape {list(calibration.shape)}.",
            "Calibration needs at least one segment of two tokens.",
            "Pass token ids of shape [segments, tokens].",
        )
    linears = _planned(model, plan)
    texts = torch.cat([calibration, heldout])
    dtype = _claim_dtype(checkpoints, model, texts, config, plan, stored)
    units = sum(PASSES[name].units(config) for name in plan.passes) * len(linears)
    passing = texts if config.reconstruct else calibration
    width = model.config.get_text_config().hidden_size
    needed = 2 * config.streams * passing.numel() * width * dtype.itemsize
    on_disk = wait_on_disk(config.activations, needed, free_memory(model.device))
    new = batches_in(checkpoints.root if on_disk else None)
    largest = max((linear.shape[0] * linear.columns for linear in linears), default=0)
    statistics = beside(model.device, largest, reporter.log)
    storage = AtOnce() if isinstance(statistics, AtOnce) else ThreadPoolExecutor(1, "storage")
    return SDSRun(
        model,
        calibration,
        config,
        plan,
        dtype,
        SDSStageStore(checkpoints),
        reporter,
        units,
        new,
        stored,
        heldout,
        statistics,
        storage,
    )


def _read_stages(
    run: SDSRun, checkpoints: Checkpoints, reader: StageReader | None
) -> dict[SDSStage, list[float]]:
    """Install one stage after the other, and measure each; the losses of those `judged` on the
    held-out windows, empty without windows."""
    losses: dict[SDSStage, list[float]] = {}
    read = judged(run.plan.stages) if len(run.heldout) else []
    for stage in run.plan.stages:
        run.safe_point()
        missing = reader is not None and reader.is_missing(stage)
        if missing or stage in read:
            install(run.model, checkpoints, stage)
        if stage in read:
            with run.timed("heldout"):
                losses[stage] = (
                    reader.losses(stage, run.heldout)
                    if reader
                    else heldout_losses(
                        run.model,
                        run.heldout,
                        run.dtype,
                        lambda _: run.safe_point(),
                        run.new,
                        run.config.batch,
                    )
                )
            if not all(map(math.isfinite, losses[stage])):
                raise ComputeError(
                    f"The loss of stage {STAGE_LABELS[stage]} is not finite.",
                    "An activation overflowed, or pruning destroyed the model.",
                    "Choose float32 as the forward precision, or a lower sparsity.",
                    field="precision",
                )
            run.reporter.metric(MetricKey("heldout", stage), fmean(losses[stage]), 0)
        if reader and (missing or stage in read):  # which ends the reading of this stage
            reader.measure(stage)
    return losses


def _planned(model: PreTrainedModel, plan: PruningPlan) -> list[LinearWeight]:
    """The linears that are pruned. Raises ModelError: the model has other layers than the one the
    plan was made for."""
    linears = all_linears(model)
    if {linear.name for linear in linears} != {*plan.layers, *plan.dense}:
        raise ModelError(
            "The model has other layers than the plan of this run.",
            "Its files have changed since the run was submitted.",
            "Add the run anew.",
            field="model",
        )
    return [linear for linear in linears if linear.name in plan.layers]


def _allocate(run: SDSRun) -> None:
    """Give every block the sparsity that OWL assigns to it, and report it."""
    groups, weights = run.plan.layers, Counter[int]()
    planned = _planned(run.model, run.plan)
    chosen = [linear for linear in planned if groups[linear.name].allocation == "owl"]
    for linear in chosen:
        weights[linear.block] += linear.shape[0] * linear.columns
    outliers = {block: run.store.report(OutlierPass.name, block).outliers for block in weights}
    shares = block_shares(outliers, weights, groups[chosen[0].name].pattern.drop)
    run.patterns |= {x.name: Pattern(0, 0, shares[x.block]) for x in chosen}
    for block, share in shares.items():
        for series, value in (("outliers", outliers[block]), ("sparsity", share)):
            run.reporter.metric(MetricKey("owl", series=series, axis="block"), value, block)
        run.reporter.log(f"OWL: {share:.2%} sparsity for block {block + 1}.")


def _claim_dtype(
    checkpoints: Checkpoints,
    model: PreTrainedModel,
    texts: Tensor,
    config: SDSConfig,
    plan: PruningPlan,
    stored: torch.dtype,
) -> torch.dtype:
    """Bind the checkpoints to this model, text, config and plan; the dtype of the forward passes,
    which the first call decides, so that a run resumed on another machine keeps it."""
    identity = f"{config.model_dump_json()} {plan.model_dump_json()} {weights_hash(model)}"
    identity += "" if stored == torch.float32 else f" {stored}"
    digest = hashlib.sha256(identity.encode())
    digest.update(texts.cpu().contiguous().numpy().data)
    precision = checkpoints.claim(digest.hexdigest(), resolve_dtype(config.precision, model.device))
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def _summary(
    reports: Sequence[BlockReport],
    kept: KeptStage,
    heldout: Mapping[SDSStage, Sequence[float]],
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
        kept=SDSStage(kept.stage),
        reason=kept.reason,
        heldout={stage: fmean(losses) for stage, losses in heldout.items()},
        errors={stage: fmean(values) for stage, values in errors.items()},
        zero_share={SDSStage(stage): zeros[stage] / weights[stage] for stage in zeros},
        seconds=dict(seconds),
        warnings=(*(text for report in reports for text in report.warnings), *more_warnings),
    )
