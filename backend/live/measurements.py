"""What the formats of a live model do: loss, divergence, distributions; which blocks lose which
tokens.

    loss         of windows, one after the other, beside the dense model's on the same
    divergence   KL = mean_t sum_v p_tv (log p_tv - log q_tv),   p dense, q live
    trace        the loss at each token with one block restored to dense, less the loss as it is
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from backend.calibration.heldout import token_nll
from backend.errors import ConfigError
from backend.evaluation.divergence import summed_kl
from backend.live.dense import DenseModel
from backend.live.model import DENSE, LiveModel
from backend.live.running import LiveWeight, RunningModel
from backend.quantization.grid import QuantizedWeight
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
    key = "ordered", name
    reference = dense.tables.get(key, lambda: ordered_values(dense.weight(name)))
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
