"""The loss on held-out windows of the calibration text, to choose by."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, PreTrainedModel

from backend.models.block_forward import NewBatches, each_logits
from backend.models.blocks import eval_mode
from backend.models.memory import MAX_LOGITS

POSITIONS = 32  # whose log-likelihood is computed in float32 at a time: their logits fit in a cache


def windows_at_once(config: PreTrainedConfig, length: int, batch: int) -> int:
    """`batch` windows of `length` tokens, or fewer where their logits would exceed `MAX_LOGITS`."""
    fitting = MAX_LOGITS // (length * config.get_text_config().vocab_size)
    return max(1, min(batch, fitting))


def window_nll(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean negative log-likelihood of each window: [b, L, V], [b, L] -> [b] float64 on the CPU."""
    windows = zip(logits, input_ids, strict=True)
    return torch.stack([token_nll(*window).double().mean() for window in windows]).cpu()


def token_nll(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p of each token but the first: [L, V], [L] -> [L - 1] float32."""
    targets = ids[1:].to(logits.device)
    parts = zip(logits[:-1].split(POSITIONS), targets.split(POSITIONS), strict=True)
    return torch.cat([cross_entropy(x.float(), y, reduction="none") for x, y in parts])


@torch.no_grad()
def heldout_losses(
    model: PreTrainedModel,
    segments: Tensor,
    dtype: torch.dtype,
    tick: Callable[[float], None] = lambda _: None,
    new: NewBatches = list,
    batch: int = 1,
) -> list[float]:
    """Mean negative log-likelihood of each of `segments` [n, L], nats per predicted token, with
    passes in `dtype` of `windows_at_once`: weights are rounded to it for each pass."""
    if not len(segments):
        return []
    half, batch = dtype == torch.bfloat16, windows_at_once(model.config, segments.shape[1], batch)
    # no autocast cache: it would keep a copy of every weight
    with (
        torch.autocast(model.device.type, torch.bfloat16, enabled=half, cache_enabled=False),
        eval_mode(model),
    ):
        passes = each_logits(model, segments, batch, new, tick)
        nlls = [window_nll(z, rows) for rows, z in zip(segments.split(batch), passes, strict=True)]
    return torch.cat(nlls).tolist()
