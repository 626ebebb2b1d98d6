"""Activation-aware weight quantization (AWQ, Lin et al. 2024).

Weights of large inputs matter most. They are rounded more finely if they are multiplied by t > 1
before rounding and their inputs are divided by t:

    t_j = e_j^a,   e_j the magnitude of input j,   normalized to sqrt(max t * min t) = 1
    a in 0, 0.05 .. 0.95 with the smallest  sum of tr(D H D^T) / tr(W H W^T),
    D = Q(W diag(t)) diag(t)^-1 - W

The sum is over the layers with the same inputs. They share t, so that the norm or the layer before
them can absorb it. Heads that share a value share t of their columns of o_proj.

Ours: e_j is the root mean square of the input rather than its mean magnitude. The error is that of
each layer relative to its output, rather than of attention or MLP as a whole. o_proj is scaled even
if heads share values, which the authors leave out. The range search of the run replaces the
authors' clipping by the output error.
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
MIN_ENERGY = 1e-8  # minimum energy of an input, relative to the largest


def input_scales(layers: BlockLayers) -> dict[str, Basis]:
    """Map each module to its basis, the same for modules with the same inputs.

    Raises:
        ConfigError: the block does not have the structure of LLaMA's.
    """
    require_llama(layers.block, layers.weights, "AWQ")
    attention: Any = layers.block.get_submodule("self_attn")
    by_inputs: dict[int, list[str]] = {}
    for module in layers.weights:
        by_inputs.setdefault(id(layers.inputs[module]), []).append(module)
    bases = dict[str, Basis]()
    for modules in by_inputs.values():
        inputs = layers.inputs[modules[0]]
        energy = inputs.energy
        if modules == ["self_attn.o_proj"]:
            # average over the heads that share values
            by_head = energy.view(-1, attention.num_key_value_groups, int(attention.head_dim))
            energy = by_head.mean(1, keepdim=True).expand_as(by_head).reshape(-1)
        weights = [layers.weights[module] for module in modules]
        settings = [layers.settings[module] for module in modules]
        basis = best_scale(weights, energy, inputs.gram, settings)
        bases |= dict.fromkeys(modules, basis)
    return bases


def best_scale(
    weights: Sequence[Tensor], energy: Tensor, H: Tensor, settings: Sequence[QuantSettings]
) -> Basis:
    """Return the scale with the smallest output error of layers with the same inputs. `weights`:
    [out, in] of each layer; `energy`: [in]; `H`: [in, in]."""
    bases = [Basis(_scale(energy, power)) if power else PLAIN for power in POWERS]
    outputs = torch.stack([_output_energy(W, H) for W in weights])
    errors = torch.stack(
        [
            torch.stack([_error(W, basis, H, s) for W, s in zip(weights, settings, strict=True)])
            for basis in bases
        ]
    )
    # read from the device once; layers without outputs do not count
    totals = (errors / outputs).where(outputs > 0, 0.0).sum(1).tolist()
    return min(zip(totals, bases, strict=True), key=lambda pair: pair[0])[1]


def _scale(energy: Tensor, power: float) -> Tensor:
    relative = (energy / energy.max()).nan_to_num(nan=1.0)  # 0 / 0 if no input has energy
    t = relative.clamp(min=MIN_ENERGY).pow(power / 2)
    return t / t.min().sqrt()  # max t = 1


def _error(W: Tensor, basis: Basis, H: Tensor, settings: QuantSettings) -> Tensor:
    """Return tr(D H D^T) for rounding to a min-max grid."""
    scaled = basis.into(W)
    grid = search_range(scaled, settings.bits, settings.group_size, settings.grid, "minmax")
    return _output_energy(basis.back(grid.nearest(scaled)) - W, H)


def _output_energy(W: Tensor, H: Tensor) -> Tensor:
    """Return tr(W H W^T), float64."""
    return torch.linalg.vecdot(W @ H, W).sum().double()


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
    """Round weights with scaled inputs to the configured grid."""
    grid = (settings.bits, settings.group_size, settings.grid)
    return W, search_range(W, *grid, settings.range_search, inputs.energy)
