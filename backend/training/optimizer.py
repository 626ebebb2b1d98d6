"""What the training loops share: the cosine schedule, and AdamW's state in a checkpoint.

factor = floor + (1 - floor) (1 + cos angle) / 2        angle from 0 after the warm-up to pi
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def cosine_decay(angle: float, floor: float = 0.0) -> float:
    """The factor of the learning rate, from 1 at angle 0 down to `floor` at pi."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(angle))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    key: str,
    entries: Sequence[str] = MOMENTS,
) -> dict[str, Tensor]:
    """The state of `parameters` as named tensors; those not updated yet have none.

    Args:
        key: names a tensor, such as "{entry}/{name}".
    """
    return {
        key.format(name=name, entry=entry): value
        for name, parameter in parameters.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if entry in entries
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    key: str,
    step: int | None = None,
) -> None:
    """Set the state that `optimizer_tensors` returned.

    Args:
        step: number of updates, where `tensors` do not hold it. A parameter without state has not
            been updated yet: an expert that no token has reached.
    """
    for name, parameter in parameters.items():
        keys = {entry: key.format(name=name, entry=entry) for entry in ("step", *MOMENTS)}
        state = {entry: tensors[each] for entry, each in keys.items() if each in tensors}
        if state:
            if step is not None:
                state.setdefault("step", torch.tensor(float(step)))
            state["step"] = state["step"].cpu()
            optimizer.state[parameter] = state
