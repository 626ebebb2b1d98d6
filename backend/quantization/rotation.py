"""Rotation before rounding (QuaRot, Ashkboos et al. 2024).

Weights and activations of a transformer have outliers in a few dimensions. An orthogonal matrix
spreads them over all dimensions, so rounding costs less. Rotated are

    the residual stream by R             norm weights are first merged into the layers after them
    the values of every head by S        from the rows of v_proj to the columns of o_proj

These are the rotations of QuaRot that cost nothing at inference. QuaRot also rotates the inputs of
down_proj, and queries and keys, at runtime; those serve 4-bit activations and caches, and are left
out. The matrices are Hadamard matrices if the size is a power of two; see `bases.rotation`.
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
    """Map each module to its basis.

    Raises:
        ConfigError: the block does not have the structure of LLaMA's.
    """
    require_llama(layers.block, layers.weights, "Rotation")
    attention: Any = layers.block.get_submodule("self_attn")
    head_size, bases = int(attention.head_dim), dict[str, Basis]()
    norms = {name: _norm_weight(layers.block, name) for name in set(READERS.values())}
    for module, W in layers.weights.items():
        if module in READERS:
            outputs = head_size if module.endswith("v_proj") else 0
            bases[module] = Basis(norms[READERS[module]], W.shape[1], outputs)
        else:
            bases[module] = Basis(None, head_size if module.endswith("o_proj") else 0, W.shape[0])
    return bases


def _norm_weight(block: nn.Module, norm: str) -> Tensor:
    """Return the weight [in] of a norm, with 1 for inputs that are always 0."""
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
    """Round rotated weights to the clipped grid with the smallest squared error."""
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
    """Run GPTQ on rotated weights."""
    return gptq(W, inputs, settings, damping)
