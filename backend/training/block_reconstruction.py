"""Block reconstruction, which trains all linears of a compressed decoder block jointly toward the
outputs of the dense block.

    min over p of   mean over tokens t of  |B(x_t; W(p)) - y_t|^2 / |y_t|^2

    y    = B(x_dense; W_dense)       outputs of the dense model for the same text
    W(p) = p * mask                  for a pruned block; rounded to a grid for a quantized block

x are the hidden states of the compressed model so far, and x_dense those of the dense model, so a
block learns to compensate for the errors of earlier blocks. The error of each token is relative to
its norm, because every later layer reads normalized hidden states; otherwise the large states of
the first token would dominate (our choice).

BRECQ does the same for quantization (Li et al., ICLR 2021, arXiv 2102.05426) and EBFT for pruning
(Guo et al., arXiv 2402.12419). The optimizer is Adam with a cosine schedule, one segment per step;
the parameters of the epoch with the lowest error on held-out segments are kept (our choice).

A learning rate that suits one block may be too high for another. If the first epoch does not lower
the held-out error, training of the block starts again at a quarter of the rates, at most three
times (our choice).
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

from backend.models.block_forward import BlockStream, Call, HiddenStates, block_as_function
from backend.training.trainer import ScheduledOptimizer, cosine_decay

ATTEMPTS = 4  # maximum attempts per block
RATE_DECAY = 0.25  # factor of the learning rates from one attempt to the next
# Each round divides the remaining imbalance by 5 for layers 64 wide, and by more for wider ones.
BALANCING_ROUNDS = 8

Parameters = Mapping[str, Tensor]  # name -> trained tensor, float32
Weights = Mapping[str, Tensor]  # module name inside the block -> [out, in], float32
Example = tuple[Tensor, Tensor, Call]  # inputs x, targets y [1, L, d], further arguments


@dataclass(frozen=True)
class Examples:
    """Training and held-out segments for one block, in batches of one segment.

    Attributes:
        stream: arguments of the forward passes.
        block: index of the block.
        inputs: x, [1, L, d] per segment; training segments first, then held-out segments.
        targets: y, [1, L, d] per segment.
        fitted: number of training segments.
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
        """Number of held-out segments."""
        return len(self.inputs) - self.fitted


class Parametrization(Protocol):
    """Map from trained parameters to the weights of a block.

    Attributes:
        parameters: name -> initial value, float32. They are relative to the size of the weights
            that they change, because Adam's epsilon is absolute.
        rates: name -> learning rate at the start of the schedule.
    """

    parameters: dict[str, Tensor]
    rates: dict[str, float]

    def weights(self, parameters: Parameters) -> Weights:
        """Compute W(p), differentiably."""


@dataclass(frozen=True)
class Reconstruction:
    """Result of the reconstruction of a block.

    Attributes:
        parameters: parameters after the best epoch.
        errors: mean error on the held-out segments before training and after each epoch; NaN
            without held-out segments.
        epoch: number of the best epoch, 0 for the initial parameters; the last epoch without
            held-out segments.
        factor: factor of the learning rates, below 1 if the initial rates were too high.
    """

    parameters: dict[str, Tensor]
    errors: list[float]
    epoch: int
    factor: float = 1.0

    @property
    def judged(self) -> bool:
        """True if a held-out error was measured, which takes held-out segments and a block with
        compressed layers."""
        return not math.isnan(self.errors[0])

    def __str__(self) -> str:
        before, after = self.errors[0], self.errors[self.epoch]
        rate = f", at {self.factor:g} times the learning rate." if self.factor < 1 else "."
        if not self.epoch:
            return f"Held-out error {before:.5f}; training did not lower it{rate}"
        return f"Held-out error {before:.5f} → {after:.5f} after epoch {self.epoch}{rate}"


def sizes_of(W: Tensor) -> Tensor:
    """Typical size of each weight by its row and column, r_i c_j [out, in].

    The non-zero entries of W / (r c) have a root mean square of 1 in each row and column (Sinkhorn
    and Knopp; our choice). Weights relative to these sizes do not depend on the scales of channels.
    """
    largest = W.abs().max()
    if not largest > 0:
        return torch.ones_like(W)
    square, mask = (W / largest).square(), (W != 0).to(W.dtype)
    columns = torch.ones_like(W[:1])
    for _ in range(BALANCING_ROUNDS):
        rows = _masked_mean(square / columns, mask, 1)
        columns = _masked_mean(square / rows, mask, 0)
    return (rows * columns).sqrt() * largest


def _masked_mean(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Mean of the masked values over a dimension, or 1 if that mean is 0."""
    mean = values.sum(dim, keepdim=True) / mask.sum(dim, keepdim=True).clamp(min=1)
    return torch.where(mean > 0, mean, 1.0)


def reconstruct(
    model: PreTrainedModel,
    examples: Examples,
    parametrization: Parametrization,
    epochs: int,
    safe_point: Callable[[], None],
    tick: Callable[[int], None],
) -> Reconstruction:
    """Train the parameters of a block that is in memory on the compute device.

    Args:
        model: model of the block.
        examples: segments to train on and to validate with.
        parametrization: initial parameters, learning rates and the map to weights.
        epochs: number of epochs.
        safe_point: called before each segment; may raise to stop.
        tick: called with the number of each epoch when it is done for the first time.
    """
    if not parametrization.parameters:  # no layer of the block is compressed
        return Reconstruction({}, [math.nan], 0)
    with block_as_function(model, examples.stream, examples.block) as forward:

        def error(parameters: Parameters, example: Example) -> Tensor:
            safe_point()
            x, y, call = example
            return relative_error(forward(parametrization.weights(parameters), x, call), y)

        error_before = _heldout_error(partial(error, parametrization.parameters), examples)
        reported_epochs = 0
        for attempt in range(ATTEMPTS):
            factor, is_last = RATE_DECAY**attempt, attempt == ATTEMPTS - 1
            training = _Training(parametrization, examples, error, epochs, factor, error_before)
            for epoch in range(1, epochs + 1):
                training.run_epoch(epoch)
                if epoch > reported_epochs:
                    tick(reported_epochs := epoch)
                if error_before > 0 and not training.errors[1] < error_before and not is_last:
                    break
            else:
                break
    return training.result


class _Training:
    """One attempt to reconstruct a block.

    Attributes:
        trained: name -> parameter.
        errors: mean error on the held-out segments before training and after each epoch.
        result: best result so far.
    """

    def __init__(
        self,
        start: Parametrization,
        examples: Examples,
        error: Callable[[Parameters, Example], Tensor],
        epochs: int,
        factor: float,
        error_before: float,
    ) -> None:
        self.trained = {name: p.clone().requires_grad_() for name, p in start.parameters.items()}
        groups = [
            {"params": [p], "lr": factor * start.rates[name]} for name, p in self.trained.items()
        ]
        self.optimizer = ScheduledOptimizer(torch.optim.Adam(groups, fused=True))
        self.examples, self.error = examples, partial(error, self.trained)
        self.steps, self.factor, self.errors = epochs * examples.fitted, factor, [error_before]
        self.result = Reconstruction(_copies(self.trained), self.errors, 0, factor)

    def run_epoch(self, number: int) -> None:
        """Train once on each segment; epochs count from 1."""
        examples, first_step = self.examples, (number - 1) * self.examples.fitted
        for step, example in enumerate(islice(examples, examples.fitted), first_step):
            with torch.enable_grad():
                loss = self.error(example)
                if loss.requires_grad:  # False if no token reaches the trained experts
                    loss.backward(inputs=[*self.trained.values()])
            self.optimizer.step(cosine_decay(math.pi * step / self.steps))
        error = _heldout_error(self.error, examples)
        if not examples.heldout or error < min(self.errors):
            self.result = Reconstruction(_copies(self.trained), self.errors, number, self.factor)
        self.errors.append(error)


def relative_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over tokens of |outputs - targets|^2 / |targets|^2, both [b, L, d].

    The denominator has a floor, because a first token whose embedding is 0 (the padding token) has
    targets of 0. If all targets are 0, the denominator is 1.
    """
    targets = targets.float()
    error, energy = (outputs.float() - targets).square().sum(-1), targets.square().sum(-1)
    floor = torch.finfo(energy.dtype).eps * energy.mean()
    return (error / energy.clamp(min=floor).where(floor > 0, 1.0)).mean()


@torch.no_grad()
def _heldout_error(error: Callable[[Example], Tensor], examples: Examples) -> float:
    """Mean error on the held-out segments; NaN without them."""
    if not examples.heldout:
        return math.nan
    heldout = islice(examples, examples.fitted, None)
    return sum(error(example).item() for example in heldout) / examples.heldout


def _copies(parameters: Parameters) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}
