"""What the training loops share: the cosine schedule, and AdamW's state in a checkpoint.

factor = floor + (1 - floor) (1 + cos angle) / 2        angle from 0 after the warm-up to pi
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

STATE = ("step", "exp_avg", "exp_avg_sq")  # of a parameter


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
