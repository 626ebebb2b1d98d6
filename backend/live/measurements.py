"""Measurements of a live model: loss, divergence, histograms, the effect of each block on each
token, and decoding times of formats.

    loss         mean loss of each window, for the live and for the dense model
    divergence   KL = mean_t sum_v p_tv (log p_tv - log q_tv),   p dense, q live
    trace        change of the loss at each token if one block is restored to dense
    time         time per token in each format, in the native decoder; see
                 `backend.sensitivity.profile`

The time of a product does not depend on the values of the weights, so codes and masks are random.
The clock is the processor time of the calling thread, which computes its share of each product, so
other processes only affect it through the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.heldout import token_nll
from backend.errors import ConfigError, ModelError
from backend.evaluation.divergence import summed_kl
from backend.live.dense import DenseModel
from backend.live.model import DENSE, LiveModel
from backend.live.running import LiveWeight, RunningModel
from backend.models.blocks import LinearWeight
from backend.pruning.masks import keep_mask
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.sensitivity.profile import DecodingTimes, Format
from backend.statistics.distribution import histogram, ordered_values, scale_of
from backend.statistics.paired import paired_ratio
from backend.statistics.ratio import PairedRatio

LONGEST_TRACE = 128  # maximum number of tokens of a trace
CONTEXT = 192  # number of tokens before the timed token
PASSES = 12  # number of timed passes, of which the fastest counts


@dataclass(frozen=True)
class LiveLoss:
    """Losses on the windows measured so far, in nats per predicted token.

    Attributes:
        windows: mean loss of the live model on each window.
        dense: mean loss of the dense model on each window.
        divergence: KL divergence from the dense model on each window; empty if not requested.
    """

    windows: tuple[float, ...] = ()
    dense: tuple[float, ...] = ()
    divergence: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        """Mean loss of the live model."""
        return fmean(self.windows)

    @property
    def ratio(self) -> PairedRatio | None:
        """Perplexity relative to the dense model, with its 95 % interval; None if there are too few
        windows."""
        return paired_ratio(self.windows, self.dense)


def losses(live: LiveModel, windows: Tensor, divergence: bool = False) -> Iterator[LiveLoss]:
    """Measure windows one by one, and yield all losses after each window.

    Args:
        live: live model.
        windows: token ids [n, L].
        divergence: measure the KL divergence, too.

    Raises:
        ConfigError: the text is too short or too long, or has token ids outside the vocabulary.
        CancelledError: a newer change cancelled the measurement.
    """
    _require_text(live, windows, live.dense.model.config.get_text_config().max_position_embeddings)
    stop, result = live.safe_point(), LiveLoss()
    for ids in windows:
        with live.dense.lock:
            stop()
            logits = live.running.logits(ids, stop)
            loss, dense = token_nll(logits, ids).mean().item(), _dense_loss(live, ids)
            kl = (_divergence(live, ids, logits),) if divergence else ()
        result = LiveLoss(
            (*result.windows, loss), (*result.dense, dense), (*result.divergence, *kl)
        )
        yield result


def traced_losses(
    live: LiveModel, ids: Tensor, other: RunningModel | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Measure how the loss at each predicted token changes if a single block is restored to dense.

    Args:
        live: live model.
        ids: token ids [L].
        other: model of the same shapes to use instead of the live model.

    Yields:
        index of each block, and change of the losses [L - 1], in nats.

    Raises:
        ConfigError, CancelledError: as in `losses`.
    """
    _require_text(live, ids[None], LONGEST_TRACE)
    stop, layers = live.safe_point(), live.dense.layers.values()
    with live.dense.lock:
        running = other or live.running
        losses_now = token_nll(running.logits(ids, stop), ids)
    for block in range(live.dense.blocks):
        difference = torch.zeros_like(losses_now)
        if other or any(live.formats[x.name] != DENSE for x in layers if x.block == block):
            with live.dense.lock:
                stop()
                with running.with_block_of(live.dense.reference(live.dtype), block):
                    logits = running.logits(ids, stop)
            difference = token_nll(logits, ids) - losses_now
        yield block, difference


def layer_histogram(
    dense: DenseModel, name: str, weights: LiveWeight
) -> tuple[Tensor, int, int, int]:
    """Histogram of a layer with the given weights, on the scale of its dense weights; see
    `backend.statistics.distribution.histogram`."""
    reference = dense.tables.get(("ordered", name), lambda: ordered_values(dense.weight(name)))
    W = weights.dense() if isinstance(weights, QuantizedWeight) else weights
    return histogram(ordered_values(W), scale_of(reference)[0])


def _dense_loss(live: LiveModel, ids: Tensor) -> float:
    """Mean loss of the dense model on one window."""
    key = "loss", *_window_key(live, ids)
    return live.dense.tables.get(
        key, lambda: token_nll(_dense_logits(live, ids), ids).mean()
    ).item()


def _divergence(live: LiveModel, ids: Tensor, logits: Tensor) -> float:
    key = "logits", *_window_key(live, ids)
    p = live.dense.tables.get(key, lambda: _dense_logits(live, ids))
    return summed_kl(p[None, :-1], logits[None, :-1]).item() / (len(ids) - 1)


def _dense_logits(live: LiveModel, ids: Tensor) -> Tensor:
    # This pass is never cancelled, because the next change needs its result, too.
    return live.dense.reference(live.dtype).logits(ids, lambda: None)


def _window_key(live: LiveModel, ids: Tensor) -> tuple[torch.dtype, bytes]:
    return live.dtype, ids.numpy().tobytes()


def _require_text(live: LiveModel, windows: Tensor, max_tokens: int) -> None:
    """Raise `ConfigError` for ids [n, L] on which the model cannot be measured."""
    vocabulary = live.dense.model.get_input_embeddings().get_parameter("weight").shape[0]
    cause = ""
    if windows.dim() != 2 or not len(windows) or windows.shape[1] < 2:
        cause = f"Its shape is {[*windows.shape]}; a window needs at least two tokens."
    elif windows.shape[1] > max_tokens:
        cause = f"A window has {windows.shape[1]} tokens; the limit is {max_tokens}."
    elif int(windows.min()) < 0 or int(windows.max()) >= vocabulary:
        cause = f"Its token ids are outside the vocabulary, 0 to {vocabulary - 1}."
    if cause:
        raise ConfigError(
            "The model cannot be measured on this text.", cause, "Choose another text.", "text"
        )


class DecodingClock:
    """Timer for a model whose layers change their formats.

    Args:
        dense: dense model.
        stop: called between formats; may raise to stop.

    Raises:
        ModelError: the native decoder does not support the model.
    """

    def __init__(self, dense: PreTrainedModel, stop: Callable[[], None]) -> None:
        self.running, self._stop = RunningModel(dense, torch.bfloat16), stop
        self.formats = dict.fromkeys(self.running.layers, Format())
        target = self.running.target
        if target is None or target.native is None:
            raise ModelError(
                "The native decoder does not support this model.", self.running.decoder
            )
        self._ids = [n % target.vocabulary for n in range(min(CONTEXT, target.context - 1))]
        self._target, self._cache = target, target.new_cache(len(self._ids) + 1)
        target.read(self._ids, self._cache)

    def milliseconds(self, formats: Mapping[str, Format]) -> float:
        """Milliseconds per token with some layers changed to new formats.

        Args:
            formats: full layer name -> format; other layers keep their formats.
        """
        self._stop()
        layers = self.running.layers
        changed = {name: fmt for name, fmt in formats.items() if fmt != self.formats[name]}
        self.running.write(
            {name: random_weights(layers[name], fmt) for name, fmt in changed.items()}
        )
        self.formats |= changed
        return 1e3 * min(self._pass_seconds() for _ in range(PASSES))

    def _pass_seconds(self) -> float:
        """Seconds of a forward pass over one token."""
        start = time.thread_time()
        self._target.read(self._ids[:1], self._cache)
        seconds = time.thread_time() - start
        self._cache.rewind(len(self._ids))
        return seconds

    def times(
        self, block_formats: Sequence[Format], head_formats: Sequence[Format]
    ) -> DecodingTimes:
        """Measure the layers of the blocks in each of `block_formats`, and the head in each of
        `head_formats`."""
        layers = self.running.layers
        in_blocks = [name for name, layer in layers.items() if layer.block >= 0]
        outside = [name for name, layer in layers.items() if layer.block < 0]
        # The narrowest format comes last: the head is timed with it, where its share is largest.
        ordered = sorted(block_formats, key=lambda fmt: -fmt.bits_per_weight(CONTEXT))
        block_times = {
            str(fmt): self.milliseconds(
                {name: fmt for name in in_blocks if fmt.fits(layers[name].columns)}
            )
            for fmt in (Format(), *ordered)
        }
        totals = {
            str(fmt): self.milliseconds(dict.fromkeys(outside, fmt))
            for fmt in (Format(), *head_formats)
        }
        dense_total = totals[str(Format())]
        return DecodingTimes(
            layers=block_times,
            head={fmt: total - dense_total for fmt, total in totals.items()},
            threads=torch.get_num_threads(),
        )


def random_weights(layer: LinearWeight, fmt: Format) -> LiveWeight:
    """Random weights in a format, with the shape of a layer."""
    scores = torch.rand(layer.read().shape)
    rows, columns = scores.shape
    mask = scores >= fmt.sparsity
    if fmt.pattern and fmt.pattern.structured:
        mask = keep_mask(scores, fmt.pattern).bool()
    if fmt.width is None:
        return (scores - 0.5) * mask / columns
    bits, zero_code = fmt.width.bits, 2 ** (fmt.width.bits - 1)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    scale = torch.full((rows, columns // (fmt.width.group or columns)), 1 / (columns * zero_code))
    grid = QuantGrid(bits, scale, torch.full_like(scale, zero_code))
    return QuantizedWeight(grid, torch.where(mask, codes, zero_code).byte())
