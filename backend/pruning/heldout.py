"""Choice of the final stage by its loss on held-out calibration segments: layers are fitted one by
one, and whether that helps the whole model only its own loss can tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
from backend.pruning.config import STAGE_LABELS, SDSStage
from backend.pruning.stage_store import install

Losses = dict[SDSStage, float]  # nats per token
FIRST_FORMS = (SDSStage.FIRST, SDSStage.CONTROL, SDSStage.FIRST_BLOCKS)  # of the first pruning
SECOND_FORMS = (SDSStage.SECOND, SDSStage.SDS, SDSStage.SDS_BLOCKS)
STEPS = {  # what leads to a candidate
    SDSStage.CONTROL: "weight adjustment",
    SDSStage.SDS: "weight adjustment",
    SDSStage.FIRST_BLOCKS: "block reconstruction",
    SDSStage.SDS_BLOCKS: "block reconstruction",
}


def split(calibration: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Split into calibration and held-out segments; the latter are the last `share`, rounded.

    At least one segment is kept for calibration; the held-out part may be empty."""
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

    One segment at a time, as the logits of a large vocabulary are the largest tensor of all."""
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
    for stage in run.plan.stages if len(run.heldout) else ():
        install(run.model, checkpoints, stage)
        losses[stage] = mean_loss(run.model, run.heldout, run.dtype, run.new, run.safe_point)
        if not math.isfinite(losses[stage]):
            what = f"The loss of stage {STAGE_LABELS[stage]} is not finite."
            why = "An activation overflowed, or pruning destroyed the model."
            do = "Choose float32 as the forward precision, or a lower sparsity."
            raise ComputeError(what, why, do, field="precision")
        run.reporter.metric(MetricKey("heldout", stage), losses[stage], 0)
        run.advance(1, "Held-out loss")
    return losses


def candidates(stages: Sequence[SDSStage]) -> list[SDSStage]:
    """The stages one of which is kept: the forms of the last pruning, in order."""
    forms = SECOND_FORMS if SDSStage.SECOND in stages else FIRST_FORMS
    return [stage for stage in forms if stage in stages]


def choose(losses: Losses, stages: Sequence[SDSStage]) -> SDSStage:
    """The candidate with the lowest held-out loss; of equal ones, and without losses, the last."""
    made = candidates(stages)[::-1]
    return min(made, key=losses.__getitem__) if losses else made[0]


def verdict(
    losses: Losses, kept: SDSStage, stages: Sequence[SDSStage], holdout: float
) -> list[str]:
    """Warnings about the choice; `holdout`: share of the segments that was to be held out."""
    if not losses:
        why = "no segments were held out" if holdout else "the held-out share is 0"
        return [f"{STAGE_LABELS[kept]} was not compared with the other stages: {why}."]
    made = candidates(stages)
    texts = [
        f"The {STEPS[stage]} ended with a higher held-out loss than {STAGE_LABELS[kept]} and was "
        "discarded."
        for stage in made[made.index(kept) + 1 :]
    ]
    for rival in FIRST_FORMS if SDSStage.SECOND in stages else ():
        if losses.get(rival, float("inf")) < losses[kept]:
            texts.append(
                f"{STAGE_LABELS[rival]} has a lower held-out loss ({losses[rival]:.4f}) than the "
                f"result, {STAGE_LABELS[kept]} ({losses[kept]:.4f})."
            )
    return texts
