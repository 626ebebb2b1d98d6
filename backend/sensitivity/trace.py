"""The dense model on held-out text: the inputs of every block, and what its outputs weigh.

    F_o = E[ (d log p(y | x) / d z_o)^2 ],   y drawn from the model's own p(. | x)

is the diagonal of the Fisher information at output o of a linear, z = W x. The loss that a change
D of its weights costs is, to second order and with outputs taken one by one,

    1/2 sum_o F_o E[(D x)_o^2]  =  1/2 sum_o F_o (D H D^T)_oo .

Gradients go backwards block by block: a block is run again from its stored inputs, so that no more
than one block's activations are held, and a model larger than memory is read twice."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from backend.models import block_forward
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks
from backend.models.hidden_states import HiddenStates
from backend.reporter import Reporter, at_block, stop_if_asked
from backend.training.vocabulary_loss import summed_loss


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
