"""Perplexity, the exponential of the mean negative log-likelihood of the predicted tokens.

Windows do not overlap, and each starts with an empty context, so a window of L tokens has L - 1
predicted tokens. The loss of window i is

    nll_i = -1/(L-1) sum_t log p(x_t | x_1 ... x_{t-1}),    nll = mean_i nll_i,    value = exp(nll).

The standard error over n windows is value * sd(nll_i) / sqrt(n), by the delta method. Perplexity
depends on the vocabulary; bits per byte are comparable across tokenizers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.heldout import heldout_losses, window_nll, windows_at_once
from backend.errors import ComputeError
from backend.evaluation.native_text import NativeText, TextModel, forward_passes, text_model
from backend.models.block_forward import NewBatches
from backend.reporter import Reporter, SilentReporter, stop_if_asked
from backend.text.slices import TextSlice

Observe = Callable[[Tensor, Tensor], None]  # (ids [b, L], logits [b, L, V]) of a forward pass


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a model on a text.

    Attributes:
        value: perplexity.
        bits_per_byte: bits per UTF-8 byte of predicted text.
        stderr: standard error of `value` over windows; None for a single window.
        tokens: number of predicted tokens.
        bos: True if every window starts with the beginning-of-text token.
        windows: loss of each window, in nats per predicted token.
    """

    value: float
    bits_per_byte: float
    stderr: float | None
    tokens: int
    bos: bool
    windows: tuple[float, ...]


def stderr(values: Tensor) -> float | None:
    """Standard error of the mean of values [n]; None for a single value."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None


@torch.no_grad()
def window_nlls(
    model: TextModel,
    input_ids: Tensor,
    batch: int,
    reporter: Reporter,
    new_batches: NewBatches = list,
    observe: Observe = lambda *_: None,
    activity: str = "Measuring perplexity",
) -> Tensor:
    """Mean negative log-likelihood of each window, in nats per predicted token: [n], float64.

    Args:
        model: model in eval mode.
        input_ids: token ids of the windows [n, L].
        batch: windows per forward pass; fewer if their logits would exceed `MAX_LOGITS`.
        reporter: receiver of progress.
        new_batches: factory for the container of hidden states of a streamed model.
        observe: called with the ids [b, L] and the logits [b, L, V] of every forward pass.
        activity: label of the progress.

    Raises:
        ComputeError: the loss of a window is not finite.
        CancelledError: cancellation was requested.
    """
    count, length = input_ids.shape
    batch = windows_at_once(model.config, length, batch)

    def tick(share: float) -> None:
        stop_if_asked(reporter)
        reporter.progress(count * share, count, activity)

    nlls: list[Tensor] = []
    for ids, logits in forward_passes(model, input_ids, batch, new_batches, tick):
        nlls.append(window_nll(logits, ids))
        observe(ids, logits)
        if not nlls[-1].isfinite().all():
            raise ComputeError(
                "The perplexity is not finite.",
                "The model's weights or activations overflowed.",
                "Use a higher precision or a lower compression.",
            )
    return torch.cat(nlls)


def perplexity(
    model: TextModel,
    text: TextSlice,
    batch: int,
    reporter: Reporter | None = None,
    new_batches: NewBatches = list,
    observe: Observe = lambda *_: None,
) -> Perplexity:
    """Measure the perplexity of `model`, in eval mode, on the windows of `text`.

    See `window_nlls` for the other arguments and the errors."""
    nlls = window_nlls(
        model, text.input_ids, batch, reporter or SilentReporter(), new_batches, observe
    )
    nll, tokens = nlls.mean().item(), len(nlls) * (text.context - 1)
    nll_stderr = stderr(nlls)
    value = math.exp(min(nll, 700.0))  # exp overflows a float64 above 709
    return Perplexity(
        value=value,
        bits_per_byte=nll * tokens / math.log(2) / max(text.utf8_bytes, 1),
        stderr=None if nll_stderr is None else value * nll_stderr,
        tokens=tokens,
        bos=text.bos,
        windows=tuple(nlls.tolist()),
    )


@torch.no_grad()
def native_losses(
    model: PreTrainedModel,
    segments: Tensor,
    dtype: torch.dtype,
    tick: Callable[[float], None] = lambda _: None,
    new_batches: NewBatches = list,
    batch: int = 1,
) -> list[float]:
    """Variant of `heldout_losses` that uses the native decoder if passes are in bfloat16 and it
    supports the model."""
    precision = "auto" if dtype == torch.bfloat16 else "float32"
    reader, _ = text_model(model, precision, segments.shape[-1])
    if not isinstance(reader, NativeText):
        return heldout_losses(model, segments, dtype, tick, new_batches, batch)
    passes = forward_passes(reader, segments, batch, new_batches, tick)
    return torch.cat([window_nll(logits, ids) for ids, logits in passes]).tolist()
