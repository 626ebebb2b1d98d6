"""Statistics during DL-QAT training: curves every few steps, profiles of all groups at a few.

changed            share of codes that differ from the initial ones
m, p05 ..          quantiles of the group magnitudes over all layers

profiles of a tensor: magnitude m and, at the first and the last snapshot, scale m s, error
(root mean square of What - W_dense) and clipped (share of weights outside the range of the grid),
all [out, groups]; codes: count of each code, [2^n]; at the last snapshot also worst: the groups
with the largest errors, weight by weight, [few, 3 + 2 size]: row, group, z, W_dense .., What ..
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from backend.metric_key import MetricKey
from backend.models.blocks import LinearWeight
from backend.models.threads import side_by_side
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.grid import QuantizedWeight
from backend.reporter import Reporter
from backend.statistics.magnitudes import ascending
from backend.statistics.names import FAN
from backend.statistics.snapshots import quantiles
from backend.statistics.tensors import TensorProfile

SNAPSHOTS = 5  # of all groups
CURVE_POINTS, STEPS_BETWEEN = 10, 2  # of curves that cost a pass over all weights
WORST_GROUPS = 16  # recorded weight by weight
MAX_GROUP_SIZE = 1024  # of those
M_STEPS = 2**16  # magnitudes are recorded in steps of 1 / M_STEPS


def code_usage(layer: QuantizedWeight) -> Tensor:
    """Count of each code: int64 [2^n]."""
    return torch.bincount(layer.codes.flatten(), minlength=layer.grid.top + 1)


class TrainingSnapshots:
    """Report the layers of one training of so many steps, by full name."""

    def __init__(
        self,
        stage: str,
        layers: Mapping[str, DLQATLinear],
        linears: Mapping[str, LinearWeight],
        steps: int,
        reporter: Reporter,
    ) -> None:
        self._stage, self._layers, self._linears = stage, layers, linears
        self._reporter, self._steps = reporter, steps
        self._at = {round(n * steps / (SNAPSHOTS - 1)) for n in range(SNAPSHOTS)}
        self._every = max(STEPS_BETWEEN, steps // CURVE_POINTS)

    def __call__(self, step: int) -> None:
        """Report after `step` steps; 0: before the first."""
        ends = step in (0, self._steps)
        curve = step % self._every == 0 or ends
        if not curve and step not in self._at:
            return
        changed, look = 0, partial(self._look, step, step in self._at)
        for _, names in groupby(self._layers, lambda name: self._linears[name].block):
            block = sorted(names, key=lambda name: -self._layers[name].m.numel())  # evens out
            beside = self._layers[block[0]].m.device.type == "cpu"
            for count, profiles in side_by_side(look, block) if beside else map(look, block):
                changed += count
                for profile in profiles:
                    self._reporter.profile(profile)
        if curve:
            self._curves(changed, step)

    def _look(self, step: int, whole: bool, name: str) -> tuple[int, list[TensorProfile]]:
        """The number of codes of a layer that have changed, and, if they are wanted, its
        profiles."""
        figures = _Figures(self._layers[name])
        return figures.changed, [*self._profiles(name, figures, step)] if whole else []

    def _curves(self, changed: int, step: int) -> None:
        weights = sum(rows * columns for rows, columns in (x.shape for x in self._layers.values()))
        self._reporter.metric(MetricKey("changed", self._stage), changed / weights, step)
        m = torch.cat([layer.m.detach().flatten() for layer in self._layers.values()])
        for name, value in zip(FAN, quantiles(ascending(m), tuple(FAN.values())), strict=True):
            self._reporter.metric(MetricKey("m", self._stage, name), value, step)

    def _profiles(self, name: str, figures: "_Figures", step: int) -> Iterator[TensorProfile]:
        layer, profile = self._layers[name], partial(self._profile, name, step)
        m = layer.m.detach()
        yield profile("magnitude", m.mul(M_STEPS).round_().div_(M_STEPS))
        yield profile("codes", figures.codes)
        if step in (0, self._steps):
            yield profile("scale", _short(m * layer.grid.scale))
            yield profile("error", _short(figures.error))
            yield profile("clipped", _short(1 - figures.inside))
        if step == self._steps and layer.shape[1] // layer.grid.groups <= MAX_GROUP_SIZE:
            yield profile("worst", _short(_worst(layer, figures.error)))

    def _profile(self, name: str, step: int, figure: str, values: Tensor) -> TensorProfile:
        linear = self._linears[name]
        names = (f"{name}.weight", linear.block, linear.module, self._stage, figure)
        return TensorProfile(*names, np.ascontiguousarray(values.float().cpu().numpy()), step)


def _short(values: Tensor) -> Tensor:
    """`values` with the mantissa of bfloat16 plus four bits, which compresses well."""
    mantissa, exponent = torch.frexp(values.float())
    return torch.ldexp(mantissa.mul_(2**12).round_().div_(2**12), exponent)


class _Figures:
    """What one walk over the weights of a layer finds.

    Attributes:
        changed: number of codes that differ from the initial ones.
        codes: count of each code, [2^n].
        error, inside: root mean square error and share inside the range of each group, [out,
            groups].
    """

    def __init__(self, layer: DLQATLinear) -> None:
        parts = map(layer.figures, layer.parts())
        changed, codes, errors, inside = zip(*parts, strict=True)
        size = layer.shape[1] // layer.grid.groups
        self.changed, self.codes = sum(changed), torch.stack(codes).sum(0)
        self.error = torch.cat(errors).div_(size).sqrt_()
        self.inside = torch.cat(inside).div_(size)


def _worst(layer: DLQATLinear, error: Tensor) -> Tensor:
    """The groups with the largest error, the worst first: row, group, z, W_dense, What."""
    order = error.flatten().argsort(descending=True, stable=True)[:WORST_GROUPS]
    rows, groups = order // layer.grid.groups, order % layer.grid.groups
    shape = (len(error), layer.grid.groups, -1)
    dense, moved = layer.dense(slice(None)).reshape(shape), layer.effective().view(shape)
    head = torch.stack([rows.float(), groups.float(), layer.grid.zero[rows, groups]], 1)
    return torch.cat([head, dense[rows, groups].float(), moved[rows, groups]], 1)
