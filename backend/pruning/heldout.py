"""Choose the final stage by its loss on held-out calibration segments.

Layers are fitted one by one; whether that helps the whole model only its own loss can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from backend.calibration.heldout import heldout_count
from backend.checkpoints import Checkpoints
from backend.errors import ComputeError
from backend.metric_key import MetricKey
from backend.models.block_forward import each_logits
from backend.models.hidden_states import NewBatches
from backend.pruning.block_work import SDSRun
from backend.pruning.config import STAGE_LABELS, SDSConfig, SDSStage
from backend.pruning.stage_store import install

Losses = dict[SDSStage, float]  # nats per token
CANDIDATES = {  # the end of a run: the stages one of which is kept, in order
    "first": (SDSStage.FIRST, SDSStage.CONTROL, SDSStage.FIRST_BLOCKS),
    "sds": (SDSStage.SECOND, SDSStage.SDS, SDSStage.SDS_BLOCKS),
}
STEPS = {  # what leads to a candidate
    SDSStage.CONTROL: "weight adjustment",
    SDSStage.SDS: "weight adjustment",
    SDSStage.FIRST_BLOCKS: "block reconstruction",
    SDSStage.SDS_BLOCKS: "block reconstruction",
}


def split(calibration: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Split into calibration and held-out segments; the latter are the last `share`, rounded.

    At least one segment is kept for calibration; the held-out part may be empty.
    """
    fitted = len(calibration) - heldout_count(len(calibration), share)
    return calibration[:fitted], calibration[fitted:]


@torch.no_grad()
def mean_loss(
    model: PreTrainedModel,
    segments: Tensor,
    dtype: torch.dtype,
    new: NewBatches = list,
    safe_point: Callable[[], None] = lambda: None,
) -> float:
    """Mean negative log-likelihood, nats per predicted token, of `segments` [n, L].

    One segment at a time, as the logits of a large vocabulary are the largest tensor of all.
    """
    model.eval()
    total, kind, half = 0.0, model.device.type, dtype == torch.bfloat16
    # no autocast cache: it would keep a copy of every weight
    with torch.autocast(kind, torch.bfloat16, enabled=half, cache_enabled=False):
        passes = each_logits(model, segments, 1, new, lambda _: safe_point())
        for row, logits in zip(segments.to(model.device), passes, strict=True):
            total += cross_entropy(logits[0, :-1].float(), row[1:], reduction="sum").item()
    return total / (len(segments) * (segments.shape[1] - 1))


def heldout_losses(run: SDSRun, checkpoints: Checkpoints) -> Losses:
    """The loss of every stage on the held-out segments; empty without segments."""
    losses: Losses = {}
    for stage in run.config.stages if len(run.heldout) else ():
        install(run.model, checkpoints, stage)
        losses[stage] = mean_loss(run.model, run.heldout, run.dtype, run.new, run.safe_point)
        if not math.isfinite(losses[stage]):
            raise ComputeError(
                f"The loss of stage {STAGE_LABELS[stage]} is not finite.",
                "An activation overflowed, or pruning destroyed the model.",
                "Choose float32 as the forward precision, or a lower sparsity.",
                field="precision",
            )
        run.reporter.metric(MetricKey("heldout", stage), losses[stage], 0)
        run.advance(1, "Held-out loss")
    return losses


def choose(losses: Losses, config: SDSConfig) -> SDSStage:
    """The last pruning, its adjusted form or its reconstructed one, whichever has the lowest
    held-out loss; of equal ones, and without losses, the last."""
    made = [stage for stage in reversed(CANDIDATES[config.until]) if stage in config.stages]
    return min(made, key=losses.__getitem__) if losses else made[0]


def verdict(losses: Losses, kept: SDSStage, config: SDSConfig) -> list[str]:
    """Warnings about the choice."""
    if not losses:
        why = "no segments were held out" if config.holdout else "the held-out share is 0"
        return [f"{STAGE_LABELS[kept]} was not compared with the other stages: {why}."]
    made = [stage for stage in CANDIDATES[config.until] if stage in config.stages]
    texts = [
        f"The {STEPS[stage]} ended with a higher held-out loss than {STAGE_LABELS[kept]} and was "
        "discarded."
        for stage in made[made.index(kept) + 1 :]
    ]
    rivals = (SDSStage.FIRST, SDSStage.CONTROL, SDSStage.FIRST_BLOCKS)
    for rival in rivals if config.until == "sds" else ():
        if losses.get(rival, float("inf")) < losses[kept]:
            texts.append(
                f"{STAGE_LABELS[rival]} has a lower held-out loss ({losses[rival]:.4f}) than the "
                f"result, {STAGE_LABELS[kept]} ({losses[kept]:.4f})."
            )
    return texts
