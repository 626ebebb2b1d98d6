"""Figures of one weight tensor at one stage, all read off one sorted copy of its values.

    skewness = E[z^3],  kurtosis = E[z^4] (3 for a bell curve),  z = (w - mean) / std

All values count, exact zeros too. The histogram counts the values that are not exactly zero; its
edges come from the dense tensor (`Scale`), so that the stages of a tensor can be laid over each
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.statistics.order import ascending
from backend.statistics.tensors import BINS, QUANTILES, TensorSnapshot

NEAR_ZERO = 0.05  # of the dense tensor's standard deviation
HEADROOM = 1.5  # pruning with compensation makes the weights that stay larger


@dataclass(frozen=True)
class Scale:
    """What the stages of one tensor are measured against, taken from the dense tensor.

    Attributes:
        edge: the histogram runs from -edge to edge.
        std: standard deviation of the dense weights.
    """

    edge: float
    std: float


def scale_of(dense: Tensor) -> Scale:
    """The scale of a dense weight tensor: 1.5 times its farther 0.1 % quantile, and its std."""
    low, high = quantiles(ascending(dense.flatten()), (QUANTILES[0], QUANTILES[-1]))
    edge = HEADROOM * max(abs(low), abs(high))
    return Scale(edge or 1.0, dense.std(correction=0).item())


def quantiles(ordered: Tensor, shares: tuple[float, ...] = QUANTILES) -> tuple[float, ...]:
    """Values below which `shares` of `ordered` [n] lie, linear between neighbours as in numpy."""
    places = torch.tensor(shares, dtype=torch.float64) * (len(ordered) - 1)
    below = places.floor().long()
    above = places.ceil().long()
    left, right = ordered[below].double().cpu(), ordered[above].double().cpu()
    return tuple((left + (right - left) * (places - below)).tolist())


def tensor_statistics(weight: Tensor, dense_std: float) -> dict[str, float]:
    """Named figures of all values of `weight`, any shape.

    Returns:
        zero_share (exact zeros), near_zero (|w| < 0.05 dense standard deviations), mean, std,
        skewness, kurtosis, min, max, l1 (sum of |w|), l2 (root of the sum of squares). Skewness
        and kurtosis of a constant tensor are 0.
    """
    values = weight.detach().float().flatten()
    std, mean = torch.std_mean(values, correction=0)
    z = (values - mean).div_(std if std > 0 else 1.0)
    cubes = z.square().mul_(z)
    figures = {
        "zero_share": (values == 0).float().mean(),
        "near_zero": (values.abs() < NEAR_ZERO * dense_std).float().mean(),
        "mean": mean,
        "std": std,
        "skewness": cubes.mean(),
        "kurtosis": cubes.mul_(z).mean(),
        "min": values.min(),
        "max": values.max(),
        "l1": values.abs().sum(),
        "l2": values.norm(),
    }
    return {name: figure.item() for name, figure in figures.items()}


def histogram(ordered: Tensor, edge: float) -> tuple[Tensor, int, int, int]:
    """Counts in `BINS` equal bins from -edge to edge, and how many values lie elsewhere.

    A bin holds its left edge, the last one both. Exact zeros are in no bin.

    Args:
        ordered: sorted values [n].

    Returns:
        counts int64 [BINS], zeros, below, above; together n.
    """
    edges = torch.linspace(-edge, edge, BINS + 1, dtype=ordered.dtype, device=ordered.device)
    edges[BINS // 2] = 0.0
    places = torch.searchsorted(ordered, edges)
    places[-1] = torch.searchsorted(ordered, edges[-1], right=True)
    zeros = int(torch.searchsorted(ordered, edges[BINS // 2], right=True) - places[BINS // 2])
    counts = places.diff().cpu()
    counts[BINS // 2] -= zeros
    return counts, zeros, int(places[0]), int(len(ordered) - places[-1])


def snapshot(
    weight: Tensor,
    scale: Scale,
    *,
    tensor: str,
    block: int,
    module: str,
    stage: str,
    more: Mapping[str, float] | None = None,
    step: int = 0,
) -> TensorSnapshot:
    """Everything that is recorded of `weight` [out, in] at `stage`.

    Args:
        scale: of the same tensor before anything was done to it.
        tensor, block, module: full parameter name, decoder block, name inside it.
        more: further figures of the method, such as the relative output error.
    """
    ordered = ascending(weight.float().flatten())
    counts, zeros, below, above = histogram(ordered, scale.edge)
    return TensorSnapshot(
        tensor=tensor,
        block=block,
        module=module,
        stage=stage,
        n=len(ordered),
        zeros=zeros,
        below=below,
        above=above,
        lo=-scale.edge,
        hi=scale.edge,
        counts=counts.numpy(),
        stats=tensor_statistics(weight, scale.std) | dict(more or {}),
        quantiles=quantiles(ordered),
        step=step,
    )
