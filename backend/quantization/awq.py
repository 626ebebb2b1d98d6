"""Activation-aware weight quantization (AWQ, Lin et al. 2024).

Weights of strong inputs matter most. Multiplied by t > 1 before rounding, and their inputs
divided by it, they are rounded more finely:

    t_j = e_j^a,   e_j the magnitude of input j,   normalized to sqrt(max t * min t) = 1
    a in 0, 0.05 .. 0.95 with the smallest  sum of tr(D H D^T) / tr(W H W^T),
    D = Q(W diag(t)) diag(t)^-1 - W

The sum goes over the layers that share the inputs, so that they share t, which the norm or the
layer before them can take over. Heads that share a value share t of their columns of o_proj.

Ours: e_j is the root mean square of the input rather than the mean of its magnitude, the error is
that of each layer, relative to its output, rather than of the attention or MLP as a whole, and
o_proj is scaled where heads share values, which the authors leave out. Their clipping of ranges by
the output error is here the range search of the run.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.quantization.bases import PLAIN, Basis, require_llama
from backend.quantization.grid import QuantGrid
from backend.quantization.plan import QuantSettings
from backend.quantization.range_search import search_range
from backend.quantization.registry import BlockLayers, quantizer

POWERS = tuple(step / 20 for step in range(20))
LEAST = 1e-8  # energy of an input, relative to the largest


def input_scales(layers: BlockLayers) -> dict[str, Basis]:
    """Module -> its basis; those of the same inputs have the same.

    Raises:
        ConfigError: the block is not built like LLaMA's.
    """
    require_llama(layers.block, layers.weights, "AWQ")
    attention: Any = layers.block.get_submodule("self_attn")
    sharing: dict[int, list[str]] = {}
    for module in layers.weights:
        sharing.setdefault(id(layers.inputs[module]), []).append(module)
    found = dict[str, Basis]()
    for modules in sharing.values():
        inputs = layers.inputs[modules[0]]
        energy = inputs.energy
        if modules == ["self_attn.o_proj"]:
            # averaged over the heads that read the same values
            by_head = energy.view(-1, attention.num_key_value_groups, int(attention.head_dim))
            energy = by_head.mean(1, keepdim=True).expand_as(by_head).reshape(-1)
        weights = [layers.weights[module] for module in modules]
        settings = [layers.settings[module] for module in modules]
        basis = best_scale(weights, energy, inputs.gram, settings)
        found |= dict.fromkeys(modules, basis)
    return found


def best_scale(
    weights: Sequence[Tensor], energy: Tensor, H: Tensor, settings: Sequence[QuantSettings]
) -> Basis:
    """The scale with the least output error of `weights` [out, in], of the same inputs."""
    least, best = torch.inf, PLAIN
    outputs = [_output_energy(W, H) for W in weights]
    for power in POWERS:
        basis = Basis(_scale(energy, power)) if power else PLAIN
        parts = zip(weights, settings, outputs, strict=True)
        error = sum(_error(W, basis, H, of) / energy for W, of, energy in parts if energy > 0)
        if error < least:
            least, best = error, basis
    return best


def _scale(energy: Tensor, power: float) -> Tensor:
    relative = energy / energy.max() if energy.max() > 0 else torch.ones_like(energy)
    t = relative.clamp(min=LEAST).pow(power / 2)
    return t / t.min().sqrt()  # max t = 1


def _error(W: Tensor, basis: Basis, H: Tensor, settings: QuantSettings) -> float:
    """tr(D H D^T) of rounding to the nearest point of a min-max grid."""
    scaled = basis.into(W)
    grid = search_range(scaled, settings.bits, settings.group_size, settings.grid, "minmax")
    return _output_energy(basis.back(grid.nearest(scaled)) - W, H)


def _output_energy(W: Tensor, H: Tensor) -> float:
    """tr(W H W^T)"""
    return torch.linalg.vecdot(W @ H, W).sum().item()


@quantizer(
    "awq",
    label="AWQ",
    needs="gram",
    export_rank=24,
    bases=input_scales,
    llama_only=True,
    saved=False,
)
def awq(
    W: Tensor, inputs: InputStatistics, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Scale the inputs, then round to the nearest point of the configured grid."""
    grid = (settings.bits, settings.group_size, settings.grid)
    return W, search_range(W, *grid, settings.space, inputs.energy)
