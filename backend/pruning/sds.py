"""Sparse-Dense-Sparse pruning (Li et al., COLING 2025) of a dense model.

    step                                                        stage
    1   prune the dense model                                   first
    2   move all weights back toward the dense outputs,         redense
        which makes the model easier to prune
    3a  prune the re-dense model                                second
    3b  adjust the remaining weights to the *original* outputs  sds
    4   optional: reconstruct block by block                    sds-blocks

The run keeps the pruned stage with the lowest loss on held-out text, see
`backend.calibration.kept_stage`. The result reports cost and error of every stage, including the
control (first pruning, adjusted under its mask), which tests whether the dense detour pays."""

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
from backend.models.devices import free_memory
from backend.models.loading import weights_hash
from backend.models.memory import spills_to_disk
from backend.models.threads import InlineExecutor, statistics_executor
from backend.pruning.block_work import SDSRun
from backend.pruning.config import CANDIDATES, STAGE_LABELS, SDSConfig, SDSStage, heldout_stages
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
    block_pass.name: block_pass
    for block_pass in (OutlierPass, FirstPass, SecondPass, FirstReconstruction, SDSReconstruction)
}


class StageReader(Protocol):
    """Evaluator of the stages. It is called for one stage at a time, installed in the model."""

    def losses(self, stage: SDSStage, windows: Tensor) -> list[float]:
        """Loss of `stage` on each of the held-out `windows` [n, L], in nats per predicted token."""

    def is_missing(self, stage: SDSStage) -> bool:
        """Return True if measurements of `stage` are missing."""

    def measure(self, stage: SDSStage) -> None:
        """Measure what is missing of `stage`. The model receives another stage afterwards."""


@dataclass(frozen=True)
class SDSResult:
    """Result of an SDS run.

    Attributes:
        kept: stage that the model now holds.
        reason: reason for the choice, in a sentence or two.
        heldout: stage -> mean loss on the held-out windows in nats per token, for the
            `heldout_stages`.
        errors: stage -> relative output error, mean over all linears. The two passes measure on
            different inputs, so only stages of the same pass are comparable.
        zero_share: stage -> share of exact zeros among the prunable weights.
        seconds: step -> duration. "inputs" are the calibration passes. Solver steps count the
            blocks of all attempts, "checkpoints" and "heldout" only the last attempt.
        warnings: texts in order of appearance.
    """

    kept: SDSStage
    reason: str
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
    plan: PruningPlan,
    checkpoints: Checkpoints,
    reporter: Reporter,
    stored_dtype: torch.dtype = torch.float32,
    heldout: Tensor | None = None,
    reader: StageReader | None = None,
) -> SDSResult:
    """Prune `model` in place by its plan, and leave the weights of every stage in `checkpoints`.

    The result is deterministic for the same model, text, config, threads and machine, even if the
    run was stopped and resumed in between. To resume, load the dense model again.

    Args:
        model: dense model on the compute device.
        calibration: token ids [segments, L] without padding.
        config: options of the run.
        plan: plan of the run, made for this config and model.
        checkpoints: checkpoints of this run only; stored blocks are not computed again.
        reporter: receiver of progress, metrics and log lines.
        stored_dtype: dtype of the base model's files, to which pruned weights are rounded.
        heldout: token ids [windows, L] that select the kept stage; None compares no stages.
        reader: evaluator of the stages; None evaluates the held-out windows with the model itself.

    Raises:
        ConfigError: the inputs do not fit together; raised before any work.
        ModelError: the model has other layers than the plan; raised before any work.
        ComputeError: a solver failed; the error has the name of the layer.
        CancelledError: cancellation was requested; all finished blocks are stored.
    """
    heldout = calibration[:0] if heldout is None else heldout
    run = _open_run(model, calibration, heldout, config, plan, checkpoints, reporter, stored_dtype)
    warnings, tokens = list[str](), calibration.numel()
    widest = max(_linears_to_prune(model, plan), key=lambda linear: linear.columns)
    if tokens < 2 * widest.columns:
        warnings.append(
            f"{tokens} calibration tokens are few for the {widest.columns} inputs of "
            f"{widest.name}. Use at least twice as many: add segments or raise the context length."
        )
        reporter.log(warnings[0])
    try:
        for block_pass in (PASSES[name] for name in plan.passes):
            block_pass(run).walk(run.blocks)
            if block_pass is OutlierPass:
                _allocate(run)
    finally:
        with suppress(Exception):  # store finished blocks, and raise the error that ended the run
            run.wait_for_storage()
        for executor in (run.statistics, run.storage):
            executor.shutdown(cancel_futures=True)
    losses = _evaluate_stages(run, checkpoints, reader)
    candidates = [stage for stage in CANDIDATES if stage in plan.stages]
    losses_by_name = {str(stage): stage_losses for stage, stage_losses in losses.items()}
    kept = choose(losses_by_name, candidates, STAGE_LABELS, [SDSStage.CONTROL])
    reporter.log(kept.reason)
    install(model, checkpoints, SDSStage(kept.stage))
    reports = [run.store.report(name, n) for name in plan.passes for n in range(run.blocks)]
    return _summarize(reports, kept, losses, run.timed.seconds, warnings)


def _open_run(
    model: PreTrainedModel,
    calibration: Tensor,
    heldout: Tensor,
    config: SDSConfig,
    plan: PruningPlan,
    checkpoints: Checkpoints,
    reporter: Reporter,
    stored_dtype: torch.dtype,
) -> SDSRun:
    """Create the state of a run and bind it to its checkpoints; see `run_sds`."""
    if calibration.dim() != 2 or not len(calibration) or calibration.shape[1] < 2:
        raise ConfigError(
            f"The calibration text has shape {list(calibration.shape)}.",
            "Calibration needs at least one segment of two tokens.",
            "Pass token ids of shape [segments, tokens].",
        )
    linears = _linears_to_prune(model, plan)
    texts = torch.cat([calibration, heldout])
    dtype = _claim_dtype(checkpoints, model, texts, config, plan, stored_dtype)
    units = sum(PASSES[name].units(config) for name in plan.passes) * len(linears)
    streamed_text = texts if config.reconstruct else calibration
    width = model.config.get_text_config().hidden_size
    # Each stream holds the inputs and the outputs of a block.
    hidden_bytes = 2 * config.streams * streamed_text.numel() * width * dtype.itemsize
    on_disk = spills_to_disk(config.activations, hidden_bytes, free_memory(model.device))
    new_batches = batches_in(checkpoints.root if on_disk else None)
    largest = max((linear.shape[0] * linear.columns for linear in linears), default=0)
    statistics = statistics_executor(model.device, largest, reporter.log)
    inline = isinstance(statistics, InlineExecutor)
    storage = InlineExecutor() if inline else ThreadPoolExecutor(1, "storage")
    return SDSRun(
        model,
        calibration,
        config,
        plan,
        dtype,
        SDSStageStore(checkpoints),
        reporter,
        units,
        new_batches,
        stored_dtype,
        heldout,
        statistics,
        storage,
    )


def _evaluate_stages(
    run: SDSRun, checkpoints: Checkpoints, reader: StageReader | None
) -> dict[SDSStage, list[float]]:
    """Install and measure the stages in order.

    Returns:
        stage -> loss on each held-out window, for the `heldout_stages`; empty without windows.
    """
    losses: dict[SDSStage, list[float]] = {}
    compared_stages = heldout_stages(run.plan.stages) if len(run.heldout) else []
    for stage in run.plan.stages:
        run.safe_point()
        is_missing = reader is not None and reader.is_missing(stage)
        if is_missing or stage in compared_stages:
            install(run.model, checkpoints, stage)
        if stage in compared_stages:
            with run.timed("heldout"):
                losses[stage] = _stage_losses(run, stage, reader)
            if not all(map(math.isfinite, losses[stage])):
                raise ComputeError(
                    f"The loss of stage {STAGE_LABELS[stage]} is not finite.",
                    "An activation overflowed, or pruning destroyed the model.",
                    "Choose float32 as the forward precision, or a lower sparsity.",
                    field="precision",
                )
            run.reporter.metric(MetricKey("heldout", stage), fmean(losses[stage]), 0)
        if reader and (is_missing or stage in compared_stages):
            reader.measure(stage)
    return losses


def _stage_losses(run: SDSRun, stage: SDSStage, reader: StageReader | None) -> list[float]:
    if reader:
        return reader.losses(stage, run.heldout)
    return heldout_losses(
        run.model,
        run.heldout,
        run.dtype,
        lambda _: run.safe_point(),
        run.new_batches,
        run.config.batch,
    )


def _linears_to_prune(model: PreTrainedModel, plan: PruningPlan) -> list[LinearWeight]:
    """Linears of `model` that the plan prunes.

    Raises:
        ModelError: the model has other layers than the plan.
    """
    linears = all_linears(model)
    if {linear.name for linear in linears} != {*plan.layers, *plan.dense}:
        raise ModelError(
            "The model has other layers than the plan of this run.",
            "Its files have changed since the run was submitted.",
            "Submit the run again.",
            field="model",
        )
    return [linear for linear in linears if linear.name in plan.layers]


def _allocate(run: SDSRun) -> None:
    """Set the pattern of every block to the sparsity that OWL assigns, and report it."""
    groups, weights = run.plan.layers, Counter[int]()
    linears = [
        linear
        for linear in _linears_to_prune(run.model, run.plan)
        if groups[linear.name].allocation == "owl"
    ]
    for linear in linears:
        weights[linear.block] += linear.shape[0] * linear.columns
    outliers = {block: run.store.report(OutlierPass.name, block).outliers for block in weights}
    shares = block_shares(outliers, weights, groups[linears[0].name].pattern.drop)
    run.patterns |= {linear.name: Pattern(0, 0, shares[linear.block]) for linear in linears}
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
    stored_dtype: torch.dtype,
) -> torch.dtype:
    """Bind the checkpoints to this model, text, config and plan, and return the dtype of the
    forward passes. The first call decides it, so that a run keeps it on another machine."""
    identity = f"{config.model_dump_json()} {plan.model_dump_json()} "
    identity += weights_hash(model, torch.float32)
    identity += "" if stored_dtype == torch.float32 else f" {stored_dtype}"
    digest = hashlib.sha256(identity.encode())
    digest.update(texts.cpu().contiguous().numpy().data)
    precision = checkpoints.claim(digest.hexdigest(), resolve_dtype(config.precision, model.device))
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def _summarize(
    reports: Sequence[BlockReport],
    kept: KeptStage,
    heldout: Mapping[SDSStage, Sequence[float]],
    run_seconds: Mapping[str, float],
    run_warnings: Sequence[str],
) -> SDSResult:
    """Merge the reports of all blocks with the measurements of the run."""
    errors = defaultdict[SDSStage, list[float]](list)
    seconds = defaultdict[str, float](float, run_seconds)
    zeros, weights = Counter[str](), Counter[str]()
    for report in reports:
        for step, step_seconds in report.seconds.items():
            seconds[step] += step_seconds
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
        warnings=(*(text for report in reports for text in report.warnings), *run_warnings),
    )
