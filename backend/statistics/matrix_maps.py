"""Pictures of a weight matrix: means over the cells of a coarse grid, and where weights went.

    mean_c    = mean of |w| in cell c           max_c  = largest |w| in it
    zeros_c   = share of w = 0 in it            change_c = mean of (|w| - |w_dense|) in it
    joint_ab  = number of weights in bin a before (dense) and in bin b after (this stage)

A cell holds about out/64 x in/64 neighbours. Both axes of the joint histogram are those of the
tensor's histogram, in 64 bins; the outermost hold what lies beyond. Figures are rounded to levels
that an eye tells apart, which keeps the maps of 210 tensors below 20 MB."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from backend.statistics.names import JOINT_BINS, MAP_CELLS, map_profile

LEVELS = 63  # from 0 to the largest figure of a map


def matrix_maps(weight: Tensor, dense: Tensor | None = None) -> dict[str, np.ndarray]:
    """Profile name -> float32 [rows, columns], at most 64 of each; in the unit of the weights.
    `weight`: [out, in]. `dense`: the same matrix before; None: there is no change to show."""
    magnitude = weight.detach().float().abs()
    size = min(len(magnitude), MAP_CELLS), min(magnitude.shape[1], MAP_CELLS)
    maps = {"mean": _means(magnitude, size), "max": _maxima(magnitude, size)}
    if dense is not None:
        maps["change"] = _means(magnitude - dense.detach().float().abs(), size)
    maps["zeros"] = 1 - _means(magnitude.sign_(), size)
    return {map_profile(name): rounded(values) for name, values in maps.items()}


def joint_histogram(weight: Tensor, dense: Tensor, edge: float) -> np.ndarray:
    """Counts [64 dense bins, 64 bins of `weight`], float32; together the number of weights.
    `weight`, `dense`: [out, in]. `edge`: of the tensor's histogram."""
    scale = JOINT_BINS / (2 * edge)
    before, after = (
        x.detach().float().flatten().add(edge).mul_(scale).clamp_(0, JOINT_BINS - 1).short()
        for x in (dense, weight)
    )  # the bin of each value, rounded down, being positive
    both = before.mul_(JOINT_BINS).add_(after)
    counts = torch.bincount(both, minlength=JOINT_BINS**2)
    return counts.view(JOINT_BINS, JOINT_BINS).cpu().numpy().astype(np.float32)


def _means(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Of the cells of a matrix [out, in]: `size`."""
    if _is_even(values, size):
        rows = values.view(size[0], -1, values.shape[1]).mean(1)
        return rows.view(*size, -1).mean(2)
    return adaptive_avg_pool2d(values[None, None], size)[0, 0]


def _maxima(values: Tensor, size: tuple[int, int]) -> Tensor:
    if _is_even(values, size):
        rows = values.view(size[0], -1, values.shape[1]).amax(1)
        return rows.view(*size, -1).amax(2)
    return adaptive_max_pool2d(values[None, None], size)[0, 0]


def _is_even(values: Tensor, size: tuple[int, int]) -> bool:
    """Whether all cells have the same size, as in most models: pooling for uneven ones takes
    several times as long; rows are taken together first, as they lie behind each other."""
    return not values.shape[0] % size[0] and not values.shape[1] % size[1]


def rounded(values: Tensor) -> np.ndarray:
    """To multiples of 1/63 of the largest magnitude; 0 stays 0."""
    unit = values.abs().amax().clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
    return (values / unit).round_().mul_(unit).cpu().numpy()
