"""Base of the training loops with checkpoints, their optimizer, and losses over a vocabulary.

A step computes the gradient of the loss, clips it, and updates the parameters at the learning rate
of the schedule. Randomness depends only on seed and step, so a killed run resumes from its last
checkpoint bit for bit. The cosine schedule multiplies the learning rates by

    factor = floor + (1 - floor) (1 + cos angle) / 2        angle from 0 after the warm-up to pi

Losses are computed for a few positions at a time. Distributions over entire sequences would be read
from memory and written back at every step of a softmax, forward and backward; those of a few
positions stay in a core's cache. The gradient with respect to the logits is computed together with
the loss, in the precision of the logits, so that no float32 copy of the logits is needed."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import ComputeError
from backend.reporter import Reporter, stop_if_asked
from backend.training.stage_store import StageStore

STATE = ("step", "exp_avg", "exp_avg_sq")  # optimizer state of a parameter
VALUE = "value/"  # prefix of trained tensors in a checkpoint
POSITIONS = {"cpu": 32}  # device type -> positions per evaluation of the loss; 1024 by default
# (logits [p, V] float32 of some positions, slice of these positions) -> summed loss
PartLoss = Callable[[Tensor, slice], Tensor]


def cosine_decay(angle: float, floor: float = 0.0) -> float:
    """Factor of the learning rate, from 1 at angle 0 to `floor` at pi."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(angle))


class ScheduledOptimizer:
    """Optimizer that multiplies the learning rates of its groups by the factor of a schedule.

    Attributes:
        rates: learning rates of the groups at factor 1.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def rate(self) -> float:
        """Learning rate of the first group at the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, factor: float) -> None:
        """Update all parameters and clear their gradients."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tensors(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Optimizer state of `parameters` under the names "{entry}/{name}".

        Parameters without an update have no state, for example those of an expert that no token has
        reached."""
        return {
            f"{entry}/{name}": value
            for name, parameter in parameters.items()
            for entry, value in self.optimizer.state.get(parameter, {}).items()
            if entry in STATE
        }

    def restore(
        self, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
    ) -> None:
        """Load the state that `tensors` returned."""
        fused = self.optimizer.defaults.get("fused")
        for name, parameter in parameters.items():
            keys = {entry: f"{entry}/{name}" for entry in STATE}
            state = {entry: tensors[key] for entry, key in keys.items() if key in tensors}
            if state:
                state["step"] = state["step"].to(parameter.device if fused else "cpu")
                self.optimizer.state[parameter] = state


class DivergenceError(ComputeError):
    """Raised when a loss or a gradient is not finite."""


class Trainer(ABC):
    """Base of a training loop over `steps` steps.

    Args:
        label: name of the training in messages.
        parameters: name -> trained parameter.
        values: name -> tensor in checkpoints, including the parameters.
        optimizer: optimizer of the parameters.
        store: checkpoints of the run.
        checkpoints: names of the checkpoints, written in turn so that an intact one always exists.
        reporter: receiver of progress and metrics.
        steps: number of steps; 0 while it is unknown.

    Attributes:
        step: number of steps done.
        saved: step of the newest checkpoint.
    """

    def __init__(
        self,
        label: str,
        parameters: Mapping[str, nn.Parameter],
        values: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        store: StageStore,
        checkpoints: tuple[str, ...],
        reporter: Reporter,
        steps: int = 0,
    ) -> None:
        self.label, self.parameters, self.values = label, parameters, values
        self.optimizer, self.reporter = ScheduledOptimizer(optimizer), reporter
        self.store, self.checkpoints = store, checkpoints
        self.step, self.steps, self.saved = 0, steps, 0

    @abstractmethod
    def backward(self) -> float:
        """Compute the gradients of a step and return its loss."""

    @abstractmethod
    def rate_factor(self) -> float:
        """Factor of the learning rates at `step`."""

    @abstractmethod
    def begin(self) -> None:
        """Prepare the loop; called before the first step after the newest checkpoint."""

    @abstractmethod
    def end_step(self, loss: float, seconds: float) -> None:
        """Report a step, and save a checkpoint from time to time; called after every step."""

    def train(self) -> None:
        """Run all steps after the newest checkpoint.

        Raises:
            DivergenceError: a loss or gradient is not finite; the last good checkpoint remains.
            CancelledError: cancellation was requested.
        """
        self.restore()
        self.begin()
        while not self.steps or self.step < self.steps:
            stop_if_asked(self.reporter)
            start = time.perf_counter()
            loss = self.update()
            self.end_step(loss, time.perf_counter() - start)

    def update(self) -> float:
        """Run one step; return its loss."""
        loss = self.backward()
        self._require_finite("loss", loss)
        norms = [  # relative to the "size" of the group, by default 1
            group.get("size", 1.0) * torch.linalg.vector_norm(parameter.grad)
            for group in self.optimizer.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self._require_finite("gradient", norm.item())
        nn.utils.clip_grads_with_norm_(self.parameters.values(), 1.0, norm)
        self.optimizer.step(self.rate_factor())
        self.step += 1
        return loss

    def _require_finite(self, quantity: str, value: float) -> None:
        if math.isfinite(value):
            return
        raise DivergenceError(
            f"The {quantity} of step {self.step + 1} of {self.label} is {value}.",
            f"Training diverged; the last good checkpoint is at step {self.saved}."
            if self.saved
            else "Training diverged before the first checkpoint.",
            "Lower the learning rates, or choose float32 as forward precision.",
            field="learning_rate",
        )

    def save(self, **facts: Any) -> None:
        """Write a checkpoint of step, values and optimizer in place of the oldest checkpoint.
        `facts` are further JSON data."""
        values = {f"{VALUE}{name}": tensor.detach() for name, tensor in self.values.items()}
        tensors = values | self.optimizer.tensors(self.parameters)
        oldest = min(self.checkpoints, key=self._saved_step)
        self.store.save(oldest, tensors, step=self.step, **facts)
        self.saved = self.step

    def restore(self) -> dict[str, Any]:
        """Load the newest checkpoint, if there is one, and return its JSON data."""
        newest, facts = max(self.checkpoints, key=self._saved_step), dict[str, Any]()
        self.step = self.saved = self._saved_step(newest)
        if self.step:
            tensors, facts = self.store.tensors(newest), self.store.facts(newest)
            with torch.no_grad():
                for name, value in self.values.items():
                    value.copy_(tensors[f"{VALUE}{name}"])
            self.optimizer.restore(self.parameters, tensors)
        return facts

    def _saved_step(self, name: str) -> int:
        return int(self.store.facts(name)["step"]) if self.store.holds(name) else 0


def summed_loss(logits: Tensor, part_loss: PartLoss) -> Tensor:
    """Sum of a loss over all positions of `logits` [n, V], float32.

    Its gradient can be computed only once.

    Args:
        logits: [n, V].
        part_loss: summed loss of some positions.
    """
    loss: Tensor = _SummedLoss.apply(logits, part_loss)
    return loss


class _SummedLoss(torch.autograd.Function):
    """Loss over parts of the positions, with the gradient computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, part_loss: PartLoss) -> Tensor:
        needs_grad, total = ctx.needs_input_grad[0], logits.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(logits if needs_grad else total)
        part_size = POSITIONS.get(logits.device.type, 1024)
        for start in range(0, len(logits), part_size):
            rows = slice(start, start + part_size)
            part = logits[rows].detach().float().requires_grad_(needs_grad)
            with torch.set_grad_enabled(needs_grad):
                loss = part_loss(part, rows)
            if needs_grad:
                (gradient[rows],) = torch.autograd.grad(loss, part)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(slope), None
