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

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.methods.sds.checks import all_linears, refuse_unfit, shortage
from backend.methods.sds.config import SDSConfig
from backend.methods.sds.holdout import choose, heldout_losses, split, verdict
from backend.methods.sds.passes import FirstPass, SecondPass
from backend.methods.sds.result import SDSResult, summary
from backend.methods.sds.stages import StageStore, install
from backend.methods.sds.work import Run
from backend.models.loading import weights_hash
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
    linears = all_linears(model)
    refuse_unfit(linears, calibration, config)
    store = StageStore(checkpoints)
    dtype = _settled_dtype(store, model, calibration, config)
    fitted, held = split(calibration, config.holdout)
    units = 4 * len(linears) + len(config.stages) * bool(len(held))
    run = Run(model, fitted, config, dtype, store, reporter, units)
    warnings = _said(reporter, shortage(linears, fitted.numel()))
    FirstPass(run).walk()
    SecondPass(run).walk()
    with run.timed("heldout"):
        losses = heldout_losses(run, checkpoints, held)
    kept = choose(losses, config)
    warnings += _said(reporter, verdict(losses, kept, config))
    install(model, checkpoints, kept)
    return summary(store.all_facts(run.blocks), kept, losses, run.timed.seconds, warnings)


def _said(reporter: Reporter, texts: list[str]) -> list[str]:
    """`texts`, after they were logged."""
    for text in texts:
        reporter.log(text)
    return texts


def _settled_dtype(
    store: StageStore, model: PreTrainedModel, calibration: Tensor, config: SDSConfig
) -> torch.dtype:
    """The dtype of the forward passes; ties the checkpoints to this model, text and config."""
    digest = hashlib.sha256(f"{config.model_dump_json()} {weights_hash(model)}".encode())
    digest.update(calibration.cpu().contiguous().numpy().data)
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16(model.device) else "float32"
    settled: torch.dtype = getattr(torch, store.claim(digest.hexdigest(), precision))
    return settled


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the processor has bfloat16 units, so that bfloat16 is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(able.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))  # the last: ARM
