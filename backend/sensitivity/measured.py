"""Measurement of sensitivity on held-out text: estimated loss of a change, and loss and divergence
with one layer changed.

To measure a change, the block of the layer runs with the changed weights from its recorded dense
inputs, then the later blocks run, for several candidates per batch:

    KL = mean_t sum_v p_tv (log p_tv - log q_tv)       p dense, q changed; nats per token
    loss = mean_t -log q_t(x_t+1)  -  mean_t -log p_t(x_t+1)

KL is never negative and has less noise than the difference of losses. Both agree in expectation on
text sampled from the model.

The estimated increase of the loss for a change D of the weights of a layer is

    1/2 mean_t (g_t . D x_t)^2       g_t = d -log p(y | x) / d z_t,   y sampled from the model's p

where x_t are the inputs of the layer at token t, and g_t the gradients at its outputs z = W x. This
is the second-order term of the loss with the Fisher information as Hessian, without interactions
between tokens or layers. It does not assume that gradients and inputs are independent. The windows
are held out from the solvers: GPTQ minimizes the error on the calibration text, where the estimate
would be several times too small.

Gradients at the outputs of the blocks are computed from the last block to the first. Each block
runs again from its recorded inputs, so that only the activations of one block are in memory; a
model larger than memory is read twice. `trace_layers` runs a block once more to record x_t and g_t
of its layers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from backend.calibration.heldout import window_nll
from backend.evaluation.divergence import summed_kl
from backend.models import block_forward
from backend.models.block_forward import Call, HiddenStates, after_blocks, block_as_function
from backend.models.blocks import LinearWeight, decoder_blocks
from backend.reporter import Reporter, at_block, stop_if_asked
from backend.training.trainer import summed_loss


@dataclass
class DenseTrace:
    """Hidden states of the dense model on held-out windows, in batches of one window.

    Attributes:
        model: dense model.
        ids: token ids [n, L].
        stream: arguments of the forward passes.
        inputs: inputs of each block, then outputs of the last block; [1, L, d] per window.
        gradients: gradients of the summed loss at the outputs of each block; [1, L, d] per window.
    """

    model: PreTrainedModel
    ids: Tensor
    stream: block_forward.BlockStream
    inputs: list[HiddenStates]
    gradients: list[list[Tensor]] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return len(decoder_blocks(self.model))


def trace(
    model: PreTrainedModel, ids: Tensor, dtype: torch.dtype, reporter: Reporter
) -> DenseTrace:
    """Run `ids` [n, L] through the dense model in `dtype` and record the inputs of each block."""
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


def measure_gradients(dense: DenseTrace, seed: int, reporter: Reporter) -> None:
    """Compute `dense.gradients`; `seed` is the seed of the sampled labels."""
    blocks, gradients = dense.blocks, _loss_gradients(dense, seed)
    dense.gradients = [gradients]
    for block in reversed(range(1, blocks)):
        blocks_done = blocks - 1 - block
        reporter.progress(blocks_done, blocks, at_block(blocks_done, blocks, "Gradients"))
        gradients = _backward(dense, block, gradients, partial(stop_if_asked, reporter))
        dense.gradients.insert(0, gradients)


def _backward(
    dense: DenseTrace, block: int, gradients: Iterable[Tensor], safe_point: Callable[[], None]
) -> list[Tensor]:
    """Return the gradients at a block's inputs, per window, given those at its outputs."""
    calls, input_gradients = dense.stream.calls[block], list[Tensor]()
    with block_forward.block_as_function(dense.model, dense.stream, block) as forward:
        for states, call, gradient in zip(dense.inputs[block], calls, gradients, strict=True):
            safe_point()
            with torch.enable_grad():
                inputs = states.detach().requires_grad_()
                forward({}, inputs, call).backward(gradient.to(states.dtype))
            assert inputs.grad is not None
            input_gradients.append(inputs.grad)
    return input_gradients


def _loss_gradients(dense: DenseTrace, seed: int) -> list[Tensor]:
    """Gradients of the summed loss with respect to the outputs of the last block, per window."""
    generator, gradients = torch.Generator().manual_seed(seed), []

    def sampled_loss(logits: Tensor, _: slice) -> Tensor:
        samples = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)
        labels = samples[:, 0].to(logits.device)
        return functional.cross_entropy(logits, labels, reduction="sum")

    for rows, hidden in zip(dense.ids.split(1), dense.inputs[-1], strict=True):
        with torch.enable_grad():
            outputs = hidden.detach().requires_grad_()
            logits = block_forward.after_blocks(dense.model, rows.to(hidden.device), outputs)[0]
            summed_loss(logits, sampled_loss).backward()
        assert outputs.grad is not None
        gradients.append(outputs.grad)
    return gradients


@dataclass
class LayerTrace:
    """Inputs of a layer and gradients at its outputs, on held-out windows of the dense model.

    Attributes:
        tokens: tokens of the windows; an expert receives only some of them.
        inputs: inputs per call [t, in].
        gradients: gradients of the summed loss at the outputs per call [t, out].
    """

    tokens: int
    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    def record(self, _module: nn.Module, args: tuple[Tensor, ...], outputs: Tensor) -> None:
        """Forward hook that records a call. The gradient is added in the backward pass."""
        call = len(self.inputs)
        self.inputs.append(args[0].detach().flatten(0, -2))
        # zero unless the call's output reaches the loss
        self.gradients.append(torch.zeros_like(outputs.detach()).flatten(0, -2))

        def add(gradient: Tensor) -> None:
            self.gradients[call] = gradient.detach().flatten(0, -2)

        outputs.register_hook(add)

    def cost(self, D: Tensor) -> tuple[float, float]:
        """Cost of a change D [out, in] of the weights.

        Returns:
            mean squared norm of D x, and estimated loss in nats per token. Both are 0 for an expert
            that received no token.
        """
        energy = loss = 0.0
        for x, g in zip(self.inputs, self.gradients, strict=True):
            change = (x @ D.to(x.dtype).T).float()
            energy += change.square().sum().item()
            loss += torch.linalg.vecdot(g.float(), change).square().sum().item()
        return energy / self.tokens, 0.5 * loss / self.tokens


def trace_layers(
    dense: DenseTrace, block: int, linears: Mapping[str, LinearWeight], reporter: Reporter
) -> dict[str, LayerTrace]:
    """Trace the layers of a block, module name -> trace; needs `dense.gradients`."""
    traces = {module: LayerTrace(dense.ids.numel()) for module in linears}
    hooks = [x.layer.register_forward_hook(traces[m].record) for m, x in linears.items()]
    try:
        _backward(dense, block, dense.gradients[block], partial(stop_if_asked, reporter))
    finally:
        for hook in hooks:
            hook.remove()
    return traces


@dataclass(frozen=True)
class Sensitivity:
    """Cost of a change in nats per token.

    Attributes:
        kl: KL divergence from the dense model.
        loss: difference of losses.
    """

    kl: float
    loss: float


class SensitivityMeter:
    """Measurement of candidates on the first windows of a trace.

    Args:
        dense: trace of the dense model.
        windows: number of windows.
        batch: candidates per batch in the later blocks.
    """

    def __init__(self, dense: DenseTrace, windows: int, batch: int) -> None:
        self._dense, self._windows = dense, min(windows, len(dense.ids))
        self._batch = batch if _broadcasts(dense) else 1
        outputs = islice(enumerate(dense.inputs[-1]), self._windows)
        self._reference = [self._logits(window, hidden) for window, hidden in outputs]

    def _logits(self, window: int, hidden: Tensor) -> Tensor:
        """Logits [candidates, L, V] for outputs of the last block [candidates, L, d]."""
        rows = self._dense.ids[window : window + 1].to(hidden.device).expand(len(hidden), -1)
        with torch.no_grad():
            return after_blocks(self._dense.model, rows, hidden)

    @property
    def dense_loss(self) -> float:
        """Mean loss of the dense model, in nats per token."""
        losses = [self._loss(w, logits).item() for w, logits in enumerate(self._reference)]
        return sum(losses) / len(losses)

    def _loss(self, window: int, logits: Tensor) -> Tensor:
        """Mean loss of each candidate, for its logits [candidates, L, V]."""
        return window_nll(logits, self._dense.ids[window].expand(len(logits), -1))

    @torch.no_grad()
    def measure(self, block: int, candidates: Sequence[Mapping[str, Tensor]]) -> list[Sensitivity]:
        """Measure candidates, each a change of a block.

        Args:
            block: index of the block.
            candidates: module name -> weights [out, in], per candidate.
        """
        sums = torch.zeros(len(candidates), 2, dtype=torch.float64)
        for window, states in islice(enumerate(self._dense.inputs[block]), self._windows):
            for start in range(0, len(candidates), self._batch):
                part = slice(start, start + self._batch)
                hidden = self._run_candidates(block, window, states, candidates[part])
                hidden = self._run_later_blocks(block, window, hidden)
                sums[part] += self._compare(window, self._logits(window, hidden))
        return [Sensitivity(*mean) for mean in (sums / self._windows).tolist()]

    @torch.no_grad()
    def measure_model(self) -> Sensitivity:
        """Measure the current model, with weights changed outside of its blocks."""
        total = torch.zeros(1, 2, dtype=torch.float64)
        for window in range(self._windows):
            rows = self._dense.ids[window : window + 1].to(self._dense.model.device)
            logits = self._dense.model(input_ids=rows, use_cache=False).logits
            total += self._compare(window, logits)
        return Sensitivity(*(total[0] / self._windows).tolist())

    def _run_candidates(
        self, block: int, window: int, states: Tensor, candidates: Sequence[Mapping[str, Tensor]]
    ) -> Tensor:
        call = self._dense.stream.calls[block][window]
        with block_as_function(self._dense.model, self._dense.stream, block) as forward:
            return torch.cat([forward(weights, states, call) for weights in candidates])

    def _run_later_blocks(self, block: int, window: int, hidden: Tensor) -> Tensor:
        for later in range(block + 1, self._dense.blocks):
            stream = self._dense.stream
            call: Call = stream.calls[later][window]
            with block_as_function(self._dense.model, stream, later) as forward:
                hidden = forward({}, hidden, call)
        return hidden

    def _compare(self, window: int, logits: Tensor) -> Tensor:
        """KL and loss [candidates, 2] for logits [candidates, L, V]."""
        dense = self._reference[window]
        kl = summed_kl(dense.expand_as(logits), logits) / dense.shape[1]
        return torch.stack([kl, self._loss(window, logits) - self._loss(window, dense)], 1)


def _broadcasts(dense: DenseTrace) -> bool:
    """Return True if blocks accept several rows with the arguments recorded for one row."""
    row = next(iter(dense.inputs[0]))
    call = dense.stream.calls[0][0]
    try:
        with torch.no_grad(), block_as_function(dense.model, dense.stream, 0) as forward:
            single, pair = forward({}, row, call), forward({}, torch.cat([row, row]), call)
    except RuntimeError:
        return False
    return pair.shape[0] == 2 and torch.allclose(pair[1], single[0], rtol=1e-3, atol=1e-4)
