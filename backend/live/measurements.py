"""What the formats of a live model do: loss, divergence, distributions; which blocks lose which
tokens.

    loss         of windows, one after the other, beside the dense model's on the same
    divergence   KL = mean_t sum_v p_tv (log p_tv - log q_tv),   p dense, q live
    trace        the loss at each token with one block restored to dense, less the loss as it is
    time         of a token in each format, in the native decoder (`backend.sensitivity.profile`)

How long a product takes does not depend on the weights: codes and masks are drawn. Time is the
processor's that the calling thread has, which computes its share of each product: what other
processes take does not count, but for what they leave in the caches.
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

LONGEST_TRACE = 128  # tokens


@dataclass(frozen=True)
class LiveLoss:
    """The losses on some windows so far, nats a predicted token. `windows`, `dense`: mean loss of
    each window, of the live and of the dense model. `divergence`: KL from the dense model on each,
    nats; empty where it was not asked for."""

    windows: tuple[float, ...] = ()
    dense: tuple[float, ...] = ()
    divergence: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        return fmean(self.windows)

    @property
    def ratio(self) -> PairedRatio | None:
        """Perplexity over the dense model's, with its 95 % interval; None of too few windows."""
        return paired_ratio(self.windows, self.dense)


def losses(live: LiveModel, windows: Tensor, divergence: bool = False) -> Iterator[LiveLoss]:
    """The losses after each of `windows` [n, L], token ids. Raises ConfigError: the text is too
    short or too long, or has other tokens; CancelledError: there was a newer change."""
    _refuse_text(live, windows, live.dense.model.config.get_text_config().max_position_embeddings)
    stop, found = live.safe_point(), LiveLoss()
    for ids in windows:
        with live.dense.lock:
            stop()
            logits = live.running.logits(ids, stop)
            loss, dense = token_nll(logits, ids).mean().item(), _dense_loss(live, ids)
            kl = (_divergence(live, ids, logits),) if divergence else ()
        found = LiveLoss((*found.windows, loss), (*found.dense, dense), (*found.divergence, *kl))
        yield found


def traced_losses(
    live: LiveModel, ids: Tensor, other: RunningModel | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Each block, and how the loss at each predicted token of `ids` [L] changes when this block
    alone is restored to dense [L - 1], nats; see `losses`. `other`: a model of the same shapes in
    place of the live one."""
    _refuse_text(live, ids[None], LONGEST_TRACE)
    stop, layers = live.safe_point(), live.dense.layers.values()
    with live.dense.lock:
        running = other or live.running
        now = token_nll(running.logits(ids, stop), ids)
    for block in range(live.dense.blocks):
        difference = torch.zeros_like(now)
        if other or any(live.formats[x.name] != DENSE for x in layers if x.block == block):
            with live.dense.lock:
                stop()
                with running.with_block_of(live.dense.reference(live.dtype), block):
                    logits = running.logits(ids, stop)
            difference = token_nll(logits, ids) - now
        yield block, difference


def layer_histogram(
    dense: DenseModel, name: str, weights: LiveWeight
) -> tuple[Tensor, int, int, int]:
    """The histogram of a layer with these weights, on the scale of its dense ones, as
    `backend.statistics.distribution.histogram` counts it."""
    reference = dense.tables.get(("ordered", name), lambda: ordered_values(dense.weight(name)))
    W = weights.dense() if isinstance(weights, QuantizedWeight) else weights
    return histogram(ordered_values(W), scale_of(reference)[0])


def _dense_loss(live: LiveModel, ids: Tensor) -> float:
    """Of one window; not to be cancelled, as it serves the next change, too."""
    key = "loss", *_key(live, ids)
    return live.dense.tables.get(
        key, lambda: token_nll(_dense_logits(live, ids), ids).mean()
    ).item()


def _divergence(live: LiveModel, ids: Tensor, logits: Tensor) -> float:
    p = live.dense.tables.get(("logits", *_key(live, ids)), lambda: _dense_logits(live, ids))
    return summed_kl(p[None, :-1], logits[None, :-1]).item() / (len(ids) - 1)


def _dense_logits(live: LiveModel, ids: Tensor) -> Tensor:
    return live.dense.reference(live.dtype).logits(ids, lambda: None)


def _key(live: LiveModel, ids: Tensor) -> tuple[torch.dtype, bytes]:
    return live.dtype, ids.numpy().tobytes()


def _refuse_text(live: LiveModel, windows: Tensor, most: int) -> None:
    """Raise `ConfigError` for ids [n, L] that cannot be measured on."""
    rows, why = live.dense.model.get_input_embeddings().get_parameter("weight").shape[0], ""
    if windows.dim() != 2 or not len(windows) or windows.shape[1] < 2:
        why = f"It is {[*windows.shape]} tokens; a window takes two."
    elif windows.shape[1] > most:
        why = f"A window has {windows.shape[1]} tokens, of at most {most}."
    elif int(windows.min()) < 0 or int(windows.max()) >= rows:
        why = f"Its tokens are not those of the model, 0 to {rows - 1}."
    if why:
        raise ConfigError("The text cannot be measured on.", why, "Choose another text.", "text")


CONTEXT, PASSES = 192, 12  # tokens before the one that is timed; passes, the fastest counts


class DecodingClock:
    """Times a model whose layers change their formats. `stop`: called between formats; may raise.
    Raises ModelError: the native decoder does not run it; nothing else is timed."""

    def __init__(self, dense: PreTrainedModel, stop: Callable[[], None]) -> None:
        self.running, self._stop = RunningModel(dense, torch.bfloat16), stop
        self.formats = dict.fromkeys(self.running.layers, Format())
        target = self.running.target
        if target is None or target.native is None:
            raise ModelError("The native decoder does not run this model.", self.running.decoder)
        self._ids = [n % target.vocabulary for n in range(min(CONTEXT, target.context - 1))]
        self._target, self._cache = target, target.new_cache(len(self._ids) + 1)
        target.read(self._ids, self._cache)

    def milliseconds(self, formats: Mapping[str, Format]) -> float:
        """Of a token with these layers in these formats, and all others as they were."""
        self._stop()
        layers = self.running.layers
        changed = {name: form for name, form in formats.items() if form != self.formats[name]}
        self.running.write({name: drawn(layers[name], form) for name, form in changed.items()})
        self.formats |= changed
        return 1e3 * min(self._pass() for _ in range(PASSES))

    def _pass(self) -> float:
        """Seconds of a token."""
        start = time.thread_time()
        self._target.read(self._ids[:1], self._cache)
        taken = time.thread_time() - start
        self._cache.rewind(len(self._ids))
        return taken

    def times(self, inside: Sequence[Format], outside: Sequence[Format]) -> DecodingTimes:
        """With the layers of the blocks in each of `inside`, and the head in each of `outside`."""
        narrowest_last = sorted(inside, key=lambda form: -form.bits_per_weight(CONTEXT))
        layers = self.running.layers.items()
        blocks, rest = ([k for k, x in layers if (x.block < 0) == out] for out in (False, True))
        taken = {
            str(form): self.milliseconds(
                {name: form for name in blocks if form.fits(dict(layers)[name].columns)}
            )
            for form in (Format(), *narrowest_last)  # beside which a head weighs most
        }
        head = {
            str(form): self.milliseconds(dict.fromkeys(rest, form)) for form in (Format(), *outside)
        }
        most = head[str(Format())]
        return DecodingTimes(
            layers=taken,
            head={form: own - most for form, own in head.items()},
            threads=torch.get_num_threads(),
        )


def drawn(layer: LinearWeight, form: Format) -> LiveWeight:
    """Weights of the shape of a layer as they are stored in a format."""
    scores = torch.rand(layer.read().shape)
    rows, columns = scores.shape
    keep = scores >= form.sparsity
    if form.pattern and form.pattern.structured:
        keep = keep_mask(scores, form.pattern).bool()
    if form.width is None:
        return (scores - 0.5) * keep / columns
    bits, middle = form.width.bits, 2 ** (form.width.bits - 1)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    scale = torch.full((rows, columns // (form.width.group or columns)), 1 / (columns * middle))
    grid = QuantGrid(bits, scale, torch.full_like(scale, middle))
    return QuantizedWeight(grid, torch.where(keep, codes, middle).byte())
