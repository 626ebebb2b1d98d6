"""Block-wise reconstruction: all linears of a decoder block are trained together until the outputs
of the compressed block meet those of the dense one.

    min over p of   mean over tokens t of  |B(x_t; W(p)) - y_t|^2 / |y_t|^2

    y    = B(x_dense; W_dense)       what the dense model makes of the same text
    W(p) = p * mask                  of a pruned block; of a quantized one, rounded to a grid

x are the hidden states of the compressed model so far, x_dense those of the dense model: the block
learns to make good what the blocks before it have lost. Each token counts relative to its length,
because every layer after it reads normalized hidden states; the long states of the first token
would otherwise decide alone (ours).

As BRECQ does for quantization (Li et al., ICLR 2021, arXiv 2102.05426) and EBFT for pruning (Guo et
al., arXiv 2402.12419). Adam with a cosine schedule, one segment per step; kept are the
parameters after the epoch with the lowest error on held-out segments (ours).

A rate that suits one block may be too high for another: where the first epoch has not lowered the
held-out error, the block begins again at a quarter of the rates, at most three times (ours).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.models.block_forward import BlockStream, Call, HiddenStates, block_of_weights
from backend.training.trainer import ScheduledOptimizer, cosine_decay

ATTEMPTS, LOWERED = 4, 0.25  # at a block, and the factor of the rates from one to the next
BALANCING_ROUNDS = 8  # the remainder shrinks fivefold in each for layers 64 wide, and wider faster

Parameters = Mapping[str, Tensor]  # name -> what is trained, float32
Weights = Mapping[str, Tensor]  # module name inside the block -> [out, in], float32
Example = tuple[Tensor, Tensor, Call]  # inputs x and targets y [1, L, d], other arguments


@dataclass(frozen=True)
class Examples:
    """Segments in front of a block, one per batch: those to train on, then the held-out ones.

    Attributes:
        inputs, targets: x and y, [1, L, d] per segment.
        fitted: how many to train on.
    """

    stream: BlockStream
    block: int
    inputs: HiddenStates
    targets: HiddenStates
    fitted: int

    def __iter__(self) -> Iterator[Example]:
        return zip(self.inputs, self.targets, self.stream.calls[self.block], strict=True)

    @property
    def heldout(self) -> int:
        return len(self.inputs) - self.fitted


class Parametrization(Protocol):
    """What is trained of a block."""

    # name -> before training, float32; in units of what it changes, as Adam's epsilon has no other
    parameters: dict[str, Tensor]
    rates: dict[str, float]  # name -> learning rate at the start of the schedule

    def weights(self, parameters: Parameters) -> Weights:
        """W(p), differentiable."""


@dataclass(frozen=True)
class Reconstruction:
    """A trained block.

    Attributes:
        parameters: of the best epoch.
        errors: mean error on the held-out segments before training and after each epoch; without
            such segments NaN.
        epoch: the best one, 0 for no training; without held-out segments the last.
        factor: of the rates; below 1 if the first were too high.
    """

    parameters: dict[str, Tensor]
    errors: list[float]
    epoch: int
    factor: float = 1.0

    @property
    def judged(self) -> bool:
        """Whether there is an error to judge by: not without held-out segments, nor of a block of
        which nothing is compressed."""
        return not math.isnan(self.errors[0])

    def __str__(self) -> str:
        before, after = self.errors[0], self.errors[self.epoch]
        end = f", at {self.factor:g} times the learning rate." if self.factor < 1 else "."
        if not self.epoch:
            return f"Held-out error {before:.5f}, which training did not lower{end}"
        return f"Held-out error {before:.5f}, then {after:.5f} after epoch {self.epoch}{end}"


def sizes_of(W: Tensor) -> Tensor:
    """r_i c_j [out, in], the sizes that rows and columns give the weights that are not 0: those of
    W / (r c) have a root mean square of 1 in each row and column (Sinkhorn and Knopp; ours).

    In units of these the weights are the same whatever the scales of channels."""
    largest = W.abs().max()
    square, kept = (W / largest).square(), (W != 0).to(W.dtype)
    columns = torch.ones_like(W[:1])
    for _ in range(BALANCING_ROUNDS if largest > 0 else 0):
        rows = _mean(square / columns, kept, 1)
        columns = _mean(square / rows, kept, 0)
    return (rows * columns).sqrt() * largest if largest > 0 else torch.ones_like(W)


def _mean(values: Tensor, kept: Tensor, dim: int) -> Tensor:
    """The mean over a dimension of the values that are kept; 1 where it is 0."""
    mean = values.sum(dim, keepdim=True) / kept.sum(dim, keepdim=True).clamp(min=1)
    return torch.where(mean > 0, mean, 1.0)


def reconstruct(
    model: PreTrainedModel,
    examples: Examples,
    parametrization: Parametrization,
    epochs: int,
    safe_point: Callable[[], None],
    tick: Callable[[int], None],
) -> Reconstruction:
    """Train parameters of a block, which is in memory on the device to work on.

    Args:
        safe_point: called before each segment; may raise to stop.
        tick: called with the number of an epoch when it is first done.
    """
    if not parametrization.parameters:
        return Reconstruction({}, [math.nan], 0)  # a block of which nothing is compressed
    with block_of_weights(model, examples.stream, examples.block) as forward:

        def error(parameters: Parameters, example: Example) -> Tensor:
            safe_point()
            x, y, call = example
            return relative_error(forward(parametrization.weights(parameters), x, call), y)

        before = _heldout_error(partial(error, parametrization.parameters), examples)
        ticked = 0
        for attempt in range(ATTEMPTS):
            factor, last = LOWERED**attempt, attempt == ATTEMPTS - 1
            training = _Training(parametrization, examples, error, epochs, factor, before)
            for done in range(1, epochs + 1):
                training.epoch(done)
                if done > ticked:
                    tick(ticked := done)
                if before > 0 and not training.errors[1] < before and not last:
                    break
            else:
                break
    return training.result


class _Training:
    """One attempt at a block.

    Attributes:
        errors: on the held-out segments, before it and after each epoch.
        result: the best so far.
    """

    def __init__(
        self,
        start: Parametrization,
        examples: Examples,
        error: Callable[[Parameters, Example], Tensor],
        epochs: int,
        factor: float,
        before: float,
    ) -> None:
        self.trained = {name: p.clone().requires_grad_() for name, p in start.parameters.items()}
        groups = [
            {"params": [p], "lr": factor * start.rates[name]} for name, p in self.trained.items()
        ]
        self.optimizer = ScheduledOptimizer(torch.optim.Adam(groups, fused=True))
        self.examples, self.error = examples, partial(error, self.trained)
        self.steps, self.factor, self.errors = epochs * examples.fitted, factor, [before]
        self.result = Reconstruction(_copies(self.trained), self.errors, 0, factor)

    def epoch(self, number: int) -> None:
        """Train on all segments once."""
        examples, done = self.examples, (number - 1) * self.examples.fitted
        for step, example in enumerate(islice(examples, examples.fitted), done):
            with torch.enable_grad():
                loss = self.error(example)
                if loss.requires_grad:  # no token may reach the experts that are trained
                    loss.backward(inputs=[*self.trained.values()])
            self.optimizer.step(cosine_decay(math.pi * step / self.steps))
        found = _heldout_error(self.error, examples)
        if not examples.heldout or found < min(self.errors):
            self.result = Reconstruction(_copies(self.trained), self.errors, number, self.factor)
        self.errors.append(found)


def relative_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over tokens of |outputs - targets|^2 / |targets|^2, both [b, L, d].

    A first token whose embedding is 0 (that of padding) has targets of 0: lengths have a floor.
    Where all targets are 0, the error is that against tokens of length 1.
    """
    targets = targets.float()
    wrong, energy = (outputs.float() - targets).square().sum(-1), targets.square().sum(-1)
    floor = torch.finfo(energy.dtype).eps * energy.mean()
    return (wrong / energy.clamp(min=floor).where(floor > 0, 1.0)).mean()


@torch.no_grad()
def _heldout_error(error: Callable[[Example], Tensor], examples: Examples) -> float:
    """Mean error on the held-out segments; NaN without them."""
    if not examples.heldout:
        return math.nan
    held = islice(examples, examples.fitted, None)
    return sum(error(each).item() for each in held) / examples.heldout


def _copies(parameters: Parameters) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}
