"""Measured sensitivity: the dense model on held-out text, what the outputs of its layers weigh, and
loss and divergence when one layer alone is changed.

The block of the layer is run from its stored dense inputs with the changed weights, and the rest of
the network behind it, several candidates a batch:

    KL = mean_t sum_v p_tv (log p_tv - log q_tv)       p dense, q changed; nats a token
    loss = mean_t -log q_t(x_t+1)  -  the same of p

KL is never negative and has less noise than the difference of losses, and both agree in expectation
where the text is as the model would write it.

What an output weighs:

    F_o = E[ (d log p(y | x) / d z_o)^2 ],   y drawn from the model's own p(. | x)

is the diagonal of the Fisher information at output o of a linear, z = W x. The loss that a change D
of its weights costs is, to second order and with outputs taken one by one,

    1/2 sum_o F_o E[(D x)_o^2]  =  1/2 sum_o F_o (D H D^T)_oo .

Gradients go backwards block by block: a block is run again from its stored inputs, so that no more
than one block's activations are held, and a model larger than memory is read twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from backend.calibration.heldout import window_nll
from backend.evaluation.divergence import summed_kl
from backend.models import block_forward
from backend.models.block_forward import Call, HiddenStates, after_blocks, block_of_weights
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks
from backend.reporter import Reporter, at_block, stop_if_asked
from backend.training.trainer import summed_loss


@dataclass
class DenseTrace:
    """Held-out windows in the dense model, one a batch.

    Attributes:
        ids: [n, L].
        inputs: of each block, and last the outputs of the last one; [1, L, d] a window.
        fisher: full name of a linear -> F [out].
    """

    model: PreTrainedModel
    ids: Tensor
    stream: block_forward.BlockStream
    inputs: list[HiddenStates]
    fisher: dict[str, Tensor] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        return len(decoder_blocks(self.model))


def trace(
    model: PreTrainedModel, ids: Tensor, dtype: torch.dtype, reporter: Reporter
) -> DenseTrace:
    """Run `ids` [n, L] through the dense model in `dtype`, and keep what goes into each block."""
    stream = block_forward.open_stream(model, ids, 1, dtype)
    inputs = [stream.hidden]
    for block in range(len(decoder_blocks(model))):
        reporter.progress(block, len(stream.calls), at_block(block, len(stream.calls), "Dense"))
        inputs.append(
            block_forward.run_block(
                model, stream, block, inputs[-1], partial(stop_if_asked, reporter)
            )
        )
    return DenseTrace(model, ids, stream, inputs)


def measure_fisher(dense: DenseTrace, seed: int, reporter: Reporter) -> None:
    """Fill `dense.fisher`. Labels are drawn with `seed`."""
    blocks, tokens = dense.blocks, dense.ids.numel()
    gradients = _loss_gradients(dense, seed)
    for block in reversed(range(blocks)):
        done = blocks - 1 - block
        reporter.progress(done, blocks, at_block(done, blocks, "Gradients"))
        linears = block_linears(dense.model, block)
        calls, earlier = dense.stream.calls[block], list[Tensor]()
        with (
            block_forward.block_of_weights(dense.model, dense.stream, block) as forward,
            _summing_squares(linears) as squares,
        ):
            for states, call, gradient in zip(dense.inputs[block], calls, gradients, strict=True):
                stop_if_asked(reporter)
                with torch.enable_grad():
                    start = states.detach().requires_grad_()
                    forward({}, start, call).backward(gradient.to(states.dtype))
                assert start.grad is not None
                earlier.append(start.grad)
        gradients = earlier
        dense.fisher |= {linears[module].name: total / tokens for module, total in squares.items()}


def _loss_gradients(dense: DenseTrace, seed: int) -> list[Tensor]:
    """Gradients of the summed loss by the outputs of the last block, a window each."""
    generator, gradients = torch.Generator().manual_seed(seed), []

    def judge(logits: Tensor, _: slice) -> Tensor:
        drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)
        labels = drawn[:, 0].to(logits.device)
        return functional.cross_entropy(logits, labels, reduction="sum")

    for rows, hidden in zip(dense.ids.split(1), dense.inputs[-1], strict=True):
        with torch.enable_grad():
            last = hidden.detach().requires_grad_()
            logits = block_forward.after_blocks(dense.model, rows.to(hidden.device), last)[0]
            summed_loss(logits, judge).backward()
        assert last.grad is not None
        gradients.append(last.grad)
    return gradients


@contextmanager
def _summing_squares(linears: Mapping[str, LinearWeight]) -> Iterator[dict[str, Tensor]]:
    """Module name -> sum over tokens of the squared gradients of its outputs [out]."""
    squares: dict[str, Tensor] = {}

    def add(name: str, _module: Any, _inputs: Any, gradients: tuple[Tensor, ...]) -> None:
        g = gradients[0].detach().float().flatten(0, -2).square().sum(0)
        squares[name] = squares[name] + g if name in squares else g

    hooks = [x.layer.register_full_backward_hook(partial(add, m)) for m, x in linears.items()]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Sensitivity:
    """What one change costs, nats a token."""

    kl: float
    loss: float


class SensitivityMeter:
    """Measures candidates on the first windows of a trace. `windows`: how many. `batch`: candidates
    that go through the rest of the network together."""

    def __init__(self, dense: DenseTrace, windows: int, batch: int) -> None:
        self._dense, self._windows = dense, min(windows, len(dense.ids))
        self._batch = batch if _broadcasts(dense) else 1
        self._reference = [self._logits(w, hidden) for w, hidden in self._outputs()]

    def _outputs(self) -> list[tuple[int, Tensor]]:
        return [(w, hidden) for w, hidden in enumerate(self._dense.inputs[-1]) if w < self._windows]

    def _logits(self, window: int, hidden: Tensor) -> Tensor:
        """[candidates, L, V]."""
        rows = self._dense.ids[window : window + 1].to(hidden.device).expand(len(hidden), -1)
        with torch.no_grad():
            return after_blocks(self._dense.model, rows, hidden)

    @property
    def dense_loss(self) -> float:
        """Mean loss of the dense model, nats a token."""
        losses = [self._loss(w, logits).item() for w, logits in enumerate(self._reference)]
        return sum(losses) / len(losses)

    def _loss(self, window: int, logits: Tensor) -> Tensor:
        """Mean loss of each candidate, for its logits [candidates, L, V]."""
        return window_nll(logits, self._dense.ids[window].expand(len(logits), -1))

    @torch.no_grad()
    def measure(self, block: int, candidates: Sequence[Mapping[str, Tensor]]) -> list[Sensitivity]:
        """Each candidate: module name in `block` -> its weights [out, in]."""
        sums = torch.zeros(len(candidates), 2, dtype=torch.float64)
        for window, states in enumerate(self._dense.inputs[block]):
            if window == self._windows:
                break
            for start in range(0, len(candidates), self._batch):
                part = slice(start, start + self._batch)
                hidden = self._changed(block, window, states, candidates[part])
                hidden = self._rest(block, window, hidden)
                sums[part] += self._compared(window, self._logits(window, hidden))
        return [Sensitivity(*mean) for mean in (sums / self._windows).tolist()]

    @torch.no_grad()
    def measure_model(self) -> Sensitivity:
        """The model as it is now, with weights changed outside of its blocks."""
        total = torch.zeros(1, 2, dtype=torch.float64)
        for window in range(self._windows):
            rows = self._dense.ids[window : window + 1].to(self._dense.model.device)
            logits = self._dense.model(input_ids=rows, use_cache=False).logits
            total += self._compared(window, logits)
        return Sensitivity(*(total[0] / self._windows).tolist())

    def _changed(
        self, block: int, window: int, states: Tensor, candidates: Sequence[Mapping[str, Tensor]]
    ) -> Tensor:
        call = self._dense.stream.calls[block][window]
        with block_of_weights(self._dense.model, self._dense.stream, block) as forward:
            return torch.cat([forward(weights, states, call) for weights in candidates])

    def _rest(self, block: int, window: int, hidden: Tensor) -> Tensor:
        for later in range(block + 1, self._dense.blocks):
            stream = self._dense.stream
            call: Call = stream.calls[later][window]
            with block_of_weights(self._dense.model, stream, later) as forward:
                hidden = forward({}, hidden, call)
        return hidden

    def _compared(self, window: int, logits: Tensor) -> Tensor:
        """KL and loss [candidates, 2] of their logits [candidates, L, V]."""
        dense = self._reference[window]
        kl = summed_kl(dense.expand_as(logits), logits) / dense.shape[1]
        return torch.stack([kl, self._loss(window, logits) - self._loss(window, dense)], 1)


def _broadcasts(dense: DenseTrace) -> bool:
    """Whether a block takes several rows with the arguments that were recorded for one."""
    first = next(iter(dense.inputs[0]))
    call = dense.stream.calls[0][0]
    try:
        with torch.no_grad(), block_of_weights(dense.model, dense.stream, 0) as forward:
            alone, both = forward({}, first, call), forward({}, torch.cat([first, first]), call)
    except RuntimeError:
        return False
    return both.shape[0] == 2 and torch.allclose(both[1], alone[0], rtol=1e-3, atol=1e-4)
