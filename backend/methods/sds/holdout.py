"""Which stage is the result is decided on calibration segments that no Gram has seen.

Layers were fitted one by one; whether that helped the model is for the model's own loss to say.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import MethodFailed
from backend.methods.sds.config import STAGE_LABELS, SDSConfig, Stage
from backend.methods.sds.stages import install
from backend.methods.sds.work import Run

Losses = dict[Stage, float]  # nats per token


def split(calibration: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Segments to calibrate on and segments held out: the last `share` of them, rounded.

    At least one segment stays on the first side; the second side may be empty.
    """
    fitted = max(1, len(calibration) - round(len(calibration) * share))
    return calibration[:fitted], calibration[fitted:]


@torch.no_grad()
def mean_loss(model: PreTrainedModel, segments: Tensor, dtype: torch.dtype) -> float:
    """Mean negative log-likelihood, nats per predicted token, of `segments` [n, L].

    One segment at a time: the logits of a large vocabulary are the largest tensor there is.
    """
    model.eval()
    total, device = 0.0, model.device
    for row in segments.to(device):
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
        total += cross_entropy(logits.float(), row[1:], reduction="sum").item()
    return total / (len(segments) * (segments.shape[1] - 1))


def heldout_losses(run: Run, checkpoints: Checkpoints, held: Tensor) -> Losses:
    """The loss of every stage on the segments `held` [n, L]; none without segments."""
    losses: Losses = {}
    for stage in run.config.stages if len(held) else ():
        install(run.model, checkpoints, stage)
        losses[stage] = mean_loss(run.model, held, run.dtype)
        if not math.isfinite(losses[stage]):
            raise MethodFailed(
                f"The model is broken at stage {STAGE_LABELS[stage]}.",
                "Its loss on the held-out text is not finite.",
                "Choose float32 as forward precision, or a milder pattern.",
                field="precision",
            )
        run.reporter.metric(f"heldout/{stage}", losses[stage], 0)
        run.advance(1, "Held-out loss")
    return losses


def choose(losses: Losses, config: SDSConfig) -> Stage:
    """The second pruning or its adjusted form, whichever has the lower loss."""
    if config.adjust == "off":
        return Stage.SECOND
    if losses and losses[Stage.SECOND] < losses[Stage.SDS]:
        return Stage.SECOND
    return Stage.SDS


def verdict(losses: Losses, kept: Stage, config: SDSConfig) -> list[str]:
    """What must not go unsaid about the choice."""
    if not losses:
        why = "no segments were held out" if config.holdout else "the held-out share is 0"
        return [f"Whether {STAGE_LABELS[kept]} is the best stage was not tested: {why}."]
    texts = []
    if kept == Stage.SECOND and Stage.SDS in losses:
        texts.append("The weight adjustment raised the held-out loss and was left out.")
    for rival in (Stage.FIRST, Stage.CONTROL):
        if losses.get(rival, float("inf")) < losses[kept]:
            texts.append(
                f"{STAGE_LABELS[rival]} has a lower held-out loss ({losses[rival]:.4f}) than the "
                f"result, {STAGE_LABELS[kept]} ({losses[kept]:.4f})."
            )
    return texts
