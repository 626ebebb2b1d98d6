"""Base of the training loops: steps, with checkpoints.

A step is the gradient of the loss, clipped, and an update at the learning rate of the schedule.
Nothing is random but what follows from seed and step, so a run that was killed goes on from its
last checkpoint bit for bit.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import ComputeError
from backend.reporter import Reporter, stop_if_asked
from backend.training.optimizer import ScheduledOptimizer
from backend.training.stage_store import StageStore

CLIP = 1.0  # norm of the gradient
VALUE = "value/"  # prefix of what is trained, in a checkpoint


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
        norm = self._gradient_norm()
        self._require_finite("gradient", norm.item())
        nn.utils.clip_grads_with_norm_(self.parameters.values(), CLIP, norm)
        self.optimizer.step(self.rate_factor())
        self.step += 1
        return loss

    def _gradient_norm(self) -> Tensor:
        """The norm of the gradient by parameters in units of the "size" of their group, or 1."""
        norms = [
            group.get("size", 1.0) * torch.linalg.vector_norm(parameter.grad)
            for group in self.optimizer.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        return torch.linalg.vector_norm(torch.stack(norms))

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
