"""The loss on held-out windows of the calibration text, to choose by."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from backend.models.block_forward import each_logits
from backend.models.hidden_states import NewBatches
from backend.models.patching import eval_mode

POSITIONS = 256  # positions whose log-likelihood is computed in float32 at a time


def window_nll(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean negative log-likelihood of each window: [b, L, V], [b, L] -> [b] float64 on the CPU."""
    logits, input_ids = logits[:, :-1], input_ids.to(logits.device)
    total = torch.zeros(len(input_ids), dtype=torch.float64)
    for start in range(0, logits.shape[1], POSITIONS):
        part = logits[:, start : start + POSITIONS].float()
        target = input_ids[:, start + 1 : start + 1 + part.shape[1]]
        losses = cross_entropy(part.flatten(0, 1), target.flatten(), reduction="none").view_as(
            target
        )
        total += losses.double().sum(1).cpu()
    return total / logits.shape[1]


@torch.no_grad()
def heldout_losses(
    model: PreTrainedModel,
    segments: Tensor,
    dtype: torch.dtype,
    tick: Callable[[float], None] = lambda _: None,
    new: NewBatches = list,
) -> list[float]:
    """Mean negative log-likelihood of each of `segments` [n, L], nats per predicted token, with
    passes in `dtype`. One at a time, as the logits of a large vocabulary are the largest tensor of
    all."""
    if not len(segments):
        return []
    half = dtype == torch.bfloat16
    # no autocast cache: it would keep a copy of every weight
    with (
        torch.autocast(model.device.type, torch.bfloat16, enabled=half, cache_enabled=False),
        eval_mode(model),
    ):
        passes = each_logits(model, segments, 1, new, tick)
        nlls = [window_nll(z, row) for row, z in zip(segments.split(1), passes, strict=True)]
    return torch.cat(nlls).tolist()
