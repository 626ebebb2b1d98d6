"""Base of the training loops, with checkpoints; their optimizer; losses over a vocabulary.

A step is the gradient of the loss, clipped, and an update at the learning rate of the schedule.
Nothing is random but what follows from seed and step, so a run that was killed goes on from its
last checkpoint bit for bit.

    factor = floor + (1 - floor) (1 + cos angle) / 2        angle from 0 after the warm-up to pi

is that of the learning rates in the cosine schedule.

Losses are computed a few positions at a time: the distributions of whole sequences are read from
memory and written to it at every step of a softmax, forward and backward; those of a few positions
stay in a core's cache. The gradient by the logits is computed with the loss, in their precision, so
that nothing in float32 of their size is kept."""

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

STATE = ("step", "exp_avg", "exp_avg_sq")  # of a parameter
VALUE = "value/"  # prefix of what is trained, in a checkpoint
POSITIONS = {"cpu": 32}  # judged at once; elsewhere 1024
# logits [p, V] float32 of some positions, and which these are -> summed loss
Judge = Callable[[Tensor, slice], Tensor]


def cosine_decay(angle: float, floor: float = 0.0) -> float:
    """The factor of the learning rate, from 1 at angle 0 down to `floor` at pi."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(angle))


class ScheduledOptimizer:
    """An optimizer whose learning rates are those of its groups, times the factor of a schedule.

    Attributes:
        rates: of the groups, at factor 1.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def rate(self) -> float:
        """Learning rate of the last update, of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, factor: float) -> None:
        """Update all parameters and forget their gradients."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tensors(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The state of `parameters` as "{entry}/{name}"; those not updated yet have none, such as
        those of an expert that no token has reached."""
        return {
            f"{entry}/{name}": value
            for name, parameter in parameters.items()
            for entry, value in self.optimizer.state.get(parameter, {}).items()
            if entry in STATE
        }

    def restore(
        self, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
    ) -> None:
        """Set the state that `tensors` returned."""
        fused = self.optimizer.defaults.get("fused")
        for name, parameter in parameters.items():
            keys = {entry: f"{entry}/{name}" for entry in STATE}
            state = {entry: tensors[key] for entry, key in keys.items() if key in tensors}
            if state:
                state["step"] = state["step"].to(parameter.device if fused else "cpu")
                self.optimizer.state[parameter] = state


class DivergenceError(ComputeError):
    """A loss or a gradient that is not finite."""


class Trainer(ABC):
    """Trains parameters to the end of `steps`.

    Args:
        label: what messages call the training.
        checkpoints: names of its checkpoints, which are written in turn, so that one of several is
            always intact.
        values: name -> tensor that checkpoints hold, the parameters among them.

    Attributes:
        step: number of steps done; of `steps`, 0 until that is known.
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
        """Set the gradients of a step; return its loss."""

    @abstractmethod
    def rate_factor(self) -> float:
        """The factor of the learning rates at `step`."""

    @abstractmethod
    def begin(self) -> None:
        """Called before the first step after the newest checkpoint."""

    @abstractmethod
    def end_step(self, loss: float, seconds: float) -> None:
        """Called after every step: reports it, and saves from time to time."""

    def train(self) -> None:
        """Run all steps after the newest checkpoint.

        Raises:
            DivergenceError: the last good checkpoint is kept.
            CancelledError: cancellation was requested.
        """
        self.restore()
        self.begin()
        while not self.steps or self.step < self.steps:
            stop_if_asked(self.reporter)
            began = time.perf_counter()
            loss = self.update()
            self.end_step(loss, time.perf_counter() - began)

    def update(self) -> float:
        """Run one step; return its loss."""
        loss = self.backward()
        self._require_finite("loss", loss)
        norms = [  # in units of the "size" of the group, or 1
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

    def _require_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        raise DivergenceError(
            f"The {what} of step {self.step + 1} of {self.label} is {value}.",
            f"Training diverged; the last good checkpoint is at step {self.saved}."
            if self.saved
            else "Training diverged before the first checkpoint.",
            "Lower the learning rates, or choose float32 as forward precision.",
            field="rate",
        )

    def save(self, **facts: Any) -> None:
        """Write a checkpoint of step, values and optimizer, in place of the oldest."""
        values = {f"{VALUE}{name}": tensor.detach() for name, tensor in self.values.items()}
        tensors = values | self.optimizer.tensors(self.parameters)
        oldest = min(self.checkpoints, key=self._saved_step)
        self.store.save(oldest, tensors, step=self.step, **facts)
        self.saved = self.step

    def restore(self) -> dict[str, Any]:
        """Go on from the newest checkpoint. Returns what it holds besides tensors; empty without
        one."""
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


def summed_loss(logits: Tensor, judge: Judge) -> Tensor:
    """The sum of what `judge` returns for all positions of `logits` [n, V], float32; its gradient
    can be taken once."""
    loss: Tensor = _ByParts.apply(logits, judge)
    return loss


class _ByParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, judge: Judge) -> Tensor:
        learns, total = ctx.needs_input_grad[0], logits.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(logits if learns else total)
        count = POSITIONS.get(logits.device.type, 1024)
        for start in range(0, len(logits), count):
            rows = slice(start, start + count)
            part = logits[rows].detach().float().requires_grad_(learns)
            with torch.set_grad_enabled(learns):
                loss = judge(part, rows)
            if learns:
                (gradient[rows],) = torch.autograd.grad(loss, part)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(slope), None
