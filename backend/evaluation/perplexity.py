"""Perplexity: exp of the mean negative log-likelihood of the predicted tokens.

Windows do not overlap and each starts with an empty context: a window of L tokens has L - 1
predicted ones. The mean over window i is

    nll_i = -1/(L-1) sum_t log p(x_t | x_1 ... x_{t-1}),    nll = mean_i nll_i,    value = exp(nll).

The standard error over n windows is value * sd(nll_i) / sqrt(n), by the delta method.
Perplexity depends on the vocabulary; bits per byte can be compared across tokenizers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.heldout import heldout_losses, window_nll, windows_at_once
from backend.errors import ComputeError
from backend.evaluation.native_text import NativeText, TextModel, passes, text_model
from backend.models.block_forward import NewBatches
from backend.reporter import Reporter, SilentReporter, stop_if_asked
from backend.text.slices import TextSlice

Observe = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a model on a text."""

    value: float  # the perplexity
    bits_per_byte: float  # bits per UTF-8 byte of predicted text
    stderr: float | None  # standard error of `value` over windows; None for a single window
    tokens: int  # predicted tokens
    bos: bool  # whether every window starts with the beginning-of-text token
    windows: tuple[float, ...]  # nats per predicted token of each window


def stderr(means: Tensor) -> float | None:
    """Standard error of the mean of values [n]; None of a single one."""
    return means.std().item() / math.sqrt(len(means)) if len(means) > 1 else None


@torch.no_grad()
def window_nlls(
    model: TextModel,
    input_ids: Tensor,
    batch: int,
    reporter: Reporter,
    new: NewBatches = list,
    observe: Observe = lambda *_: None,
    doing: str = "Measuring perplexity",
) -> Tensor:
    """Mean negative log-likelihood of each window of `input_ids` [n, L]: [n] float64.

    The batch is reduced where the logits of `batch` windows would exceed `MAX_LOGITS`. `new`:
    creates the container for the hidden states of a streamed model. `observe`: called with the ids
    [b, L] and the logits [b, L, V] of every forward pass. `doing`: what the progress says. Raises
    ComputeError: a window's loss is not finite; CancelledError: cancellation was requested."""
    count, length = input_ids.shape
    batch = windows_at_once(model.config, length, batch)

    def tick(share: float) -> None:
        stop_if_asked(reporter)
        reporter.progress(count * share, count, doing)

    nlls: list[Tensor] = []
    for part, logits in passes(model, input_ids, batch, new, tick):
        nlls.append(window_nll(logits, part))
        observe(part, logits)
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
    new: NewBatches = list,
    observe: Observe = lambda *_: None,
) -> Perplexity:
    """The perplexity of `model` on the windows of `text`, `batch` windows at a time.

    The model should be in eval mode. For the other arguments and errors see `window_nlls`."""
    nlls = window_nlls(model, text.input_ids, batch, reporter or SilentReporter(), new, observe)
    nll, tokens = nlls.mean().item(), len(nlls) * (text.context - 1)
    spread = stderr(nlls)
    value = math.exp(min(nll, 700.0))  # exp overflows a float64 above 709
    return Perplexity(
        value=value,
        bits_per_byte=nll * tokens / math.log(2) / max(text.utf8_bytes, 1),
        stderr=None if spread is None else value * spread,
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
    new: NewBatches = list,
    batch: int = 1,
) -> list[float]:
    """`heldout_losses`, read by the native decoder where passes are in bfloat16 and it runs the
    model."""
    half = dtype == torch.bfloat16
    reader, _ = text_model(model, "auto" if half else "float32", segments.shape[-1])
    if not isinstance(reader, NativeText):
        return heldout_losses(model, segments, dtype, tick, new, batch)
    read = passes(reader, segments, batch, new, tick)
    return torch.cat([window_nll(logits, ids) for ids, logits in read]).tolist()
