"""Rotation before rounding (QuaRot, Ashkboos et al. 2024).

Weights and activations of a transformer have outliers in a few places. Turned by an orthogonal
matrix they are spread over all of them, and rounding costs less. Turned are

    the residual stream, all of it, by R      norms hand their weights on to the layers behind them
    the values of every head, by the same S   from the rows of v_proj to the columns of o_proj

These are the rotations of QuaRot that cost nothing when the model runs. Its others turn the inputs
of down_proj, and queries and keys, while it runs; they serve 4-bit activations and caches, and are
left out. The matrices are Hadamard's where the size is a power of two; see `bases.rotation`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from backend.calibration.second_moments import InputStatistics
from backend.quantization.bases import Basis, require_llama
from backend.quantization.gptq import gptq
from backend.quantization.grid import QuantGrid
from backend.quantization.plan import READERS, QuantSettings
from backend.quantization.range_search import search_range
from backend.quantization.registry import BlockLayers, quantizer


def rotations(layers: BlockLayers) -> dict[str, Basis]:
    """Module -> its basis.

    Raises:
        ConfigError: the block is not built like LLaMA's.
    """
    require_llama(layers.block, layers.weights, "Rotation")
    attention: Any = layers.block.get_submodule("self_attn")
    head, found = int(attention.head_dim), dict[str, Basis]()
    norms = {name: _weights(layers.block, name) for name in set(READERS.values())}
    for module, W in layers.weights.items():
        if module in READERS:
            heads = head if module.endswith("v_proj") else 0
            found[module] = Basis(norms[READERS[module]], W.shape[1], heads)
        else:
            found[module] = Basis(None, head if module.endswith("o_proj") else 0, W.shape[0])
    return found


def _weights(block: nn.Module, norm: str) -> Tensor:
    """What a norm multiplies the residual stream with [in]; 1 for inputs that are always 0."""
    weight = block.get_parameter(f"{norm}.weight").detach().float()
    return torch.where(weight == 0, 1.0, weight)


@quantizer(
    "rotated",
    label="RTN, rotated",
    needs="nothing",
    export_rank=22,
    bases=rotations,
    llama_only=True,
    keeps_zeros=False,
    saved=False,
)
def rotated(
    W: Tensor, inputs: InputStatistics, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Rotate, then round to the clipped grid with the smallest squared weight error."""
    return W, search_range(W, settings.bits, settings.group_size, settings.grid, "mse")


@quantizer(
    "rotated-gptq",
    label="GPTQ, rotated",
    needs="gram",
    export_rank=28,
    bases=rotations,
    llama_only=True,
    keeps_zeros=False,
    saved=False,
)
def rotated_gptq(
    W: Tensor, inputs: InputStatistics, settings: QuantSettings, damping: float
) -> tuple[Tensor, QuantGrid]:
    """Rotate, then GPTQ."""
    return gptq(W, inputs, settings, damping)
