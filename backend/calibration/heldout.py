"""Loss on held-out windows of the calibration text, by which a run selects its stage."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, PreTrainedModel

from backend.models.block_forward import NewBatches, logit_batches
from backend.models.blocks import eval_mode
from backend.models.memory import MAX_LOGITS

# Positions whose log-likelihood is computed at a time in float32; their logits fit in a cache.
POSITIONS = 32


def windows_at_once(config: PreTrainedConfig, length: int, batch: int) -> int:
    """Number of windows of `length` tokens per forward pass: `batch`, or fewer if their logits
    would exceed `MAX_LOGITS`."""
    max_windows = MAX_LOGITS // (length * config.get_text_config().vocab_size)
    return max(1, min(batch, max_windows))


def window_nll(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean negative log-likelihood of each window.

    Args:
        logits: [b, L, V].
        input_ids: [b, L].

    Returns:
        [b], float64, on the CPU.
    """
    windows = zip(logits, input_ids, strict=True)
    return torch.stack([token_nll(*window).double().mean() for window in windows]).cpu()


def token_nll(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood of each token after the first.

    Args:
        logits: [L, V].
        ids: [L].

    Returns:
        [L - 1], float32.
    """
    targets = ids[1:].to(logits.device)
    parts = zip(logits[:-1].split(POSITIONS), targets.split(POSITIONS), strict=True)
    return torch.cat([cross_entropy(x.float(), y, reduction="none") for x, y in parts])


@torch.no_grad()
def heldout_losses(
    model: PreTrainedModel,
    segments: Tensor,
    dtype: torch.dtype,
    tick: Callable[[float], None] = lambda _: None,
    new_batches: NewBatches = list,
    batch: int = 1,
) -> list[float]:
    """Mean negative log-likelihood of each segment, in nats per predicted token.

    Args:
        model: model to evaluate.
        segments: token ids [n, L].
        dtype: dtype of the forward passes, to which weights are rounded in each pass.
        tick: called with the share that is done; may raise to stop.
        new_batches: factory for the container of hidden states of a streamed model.
        batch: maximum number of segments per forward pass, see `windows_at_once`.
    """
    if not len(segments):
        return []
    batch = windows_at_once(model.config, segments.shape[1], batch)
    is_bfloat16 = dtype == torch.bfloat16
    # The autocast cache would keep a copy of every weight.
    with (
        torch.autocast(model.device.type, torch.bfloat16, enabled=is_bfloat16, cache_enabled=False),
        eval_mode(model),
    ):
        passes = logit_batches(model, segments, batch, new_batches, tick)
        nlls = [window_nll(z, rows) for rows, z in zip(segments.split(batch), passes, strict=True)]
    return torch.cat(nlls).tolist()
