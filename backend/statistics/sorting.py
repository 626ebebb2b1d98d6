"""Sorting with numpy, which is about twenty times faster than torch for float32 on a CPU."""

import numpy as np
import torch
from torch import Tensor


def ascending(values: Tensor) -> Tensor:
    """`values` [..., n] sorted along the last dimension, smallest first."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))
    return values.detach().sort(dim=-1).values


def smallest(values: Tensor, place: int) -> Tensor:
    """The value [...] of rank `place` (0: smallest) along the last dimension of `values`."""
    if values.device.type == "cpu":
        parted = np.partition(values.detach().numpy(), place, axis=-1)
        return torch.as_tensor(parted[..., place])
    return ascending(values)[..., place]
