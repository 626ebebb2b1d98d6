"""Linear layers with codes instead of weights. The native decoder packs the codes into n bits.

Here a code takes one byte. PyTorch has no product with codes, so a forward pass in PyTorch expands
the weights of the layer. A model that PyTorch decodes is expanded once, beforehand.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from backend.models.blocks import turned
from backend.quantization.grid import QuantizedWeight

RUN = 32  # inputs whose codes the native decoder reads together; group sizes are multiples


class PackedLinear(nn.Module):
    """Linear layer with codes, and with inputs and outputs in bfloat16."""

    def __init__(self, layer: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.quantized = layer
        self.out_features, self.in_features = layer.codes.shape
        cast = None if bias is None else bias.detach().bfloat16()
        self.bias = None if cast is None else nn.Parameter(cast, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """Expanded weights [out, in], bfloat16."""
        return self.quantized.dense().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def has_codes(module: nn.Module) -> bool:
    """Return True if a module has codes, in its attribute `quantized`."""
    return getattr(module, "quantized", None) is not None


def set_codes(model: PreTrainedModel, module: nn.Module, layer: QuantizedWeight | None) -> None:
    """Store the codes of a module's weights next to the weights; for a tied embedding and head, in
    both. None, or codes that the native decoder cannot read, remove stored codes."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(head, "weight", None) is getattr(embedding, "weight", None)
    codes = layer if layer is not None and is_readable(layer) else None
    target: Any
    for target in (embedding, head) if tied and module in (embedding, head) else (module,):
        target.quantized = codes


def is_readable(layer: QuantizedWeight) -> bool:
    """Return True if the native decoder can read the codes of a layer."""
    return layer.group_size % RUN == 0 and layer.basis.plain


@torch.no_grad()
def expand(model: PreTrainedModel, layers: Mapping[str, QuantizedWeight]) -> None:
    """Write the expanded weights of `layers` into `model`."""
    for name, layer in layers.items():
        module = model.get_submodule(name)
        module.get_parameter("weight").copy_(turned(module, layer.dense()))


def pack_model(model: PreTrainedModel, layers: Mapping[str, QuantizedWeight]) -> list[str]:
    """Replace `layers` in `model` with packed linears for the native decoder.

    Embedding and head are expanded and keep their codes next to the weights. Layers whose codes the
    decoder cannot read are expanded; their names are returned.
    """
    outside = model.get_input_embeddings(), model.get_output_embeddings()
    for name, layer in layers.items():
        module: Any = model.get_submodule(name)
        if is_readable(layer) and module not in outside:
            model.set_submodule(name, PackedLinear(layer, module.bias))
        else:
            expand(model, {name: layer})
            set_codes(model, module, layer)
    return [name for name, layer in layers.items() if not is_readable(layer)]


def unpack_model(model: PreTrainedModel) -> None:
    """Replace packed linears with dense ones."""
    for name, packed in [*model.named_modules()]:
        if isinstance(packed, PackedLinear):
            dense = nn.Linear(packed.in_features, packed.out_features, device="meta")
            dense.weight = nn.Parameter(packed.weight, requires_grad=False)
            dense.bias = packed.bias  # type: ignore[assignment]
            model.set_submodule(name, dense)
