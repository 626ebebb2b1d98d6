"""Linear layers that hold codes, one in a byte: the native decoder lays them out in n bits.

PyTorch has no product with codes. Where one of its passes meets such a layer, it expands the
weights and multiplies; a model that PyTorch decodes is expanded once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from backend.models.blocks import turned
from backend.quantization.grid import QuantizedWeight

RUN = 32  # inputs whose codes the native decoder reads together: a group is of one or more


class PackedLinear(nn.Module):
    """A linear of codes, with inputs and outputs in bfloat16."""

    def __init__(self, layer: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.quantized = layer
        self.out_features, self.in_features = layer.codes.shape
        cast = None if bias is None else bias.detach().bfloat16()
        self.bias = None if cast is None else nn.Parameter(cast, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weights [out, in], expanded."""
        return self.quantized.dense().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def has_codes(module: nn.Module) -> bool:
    """Whether the weights of a module are at hand as codes, as its attribute `quantized`."""
    return getattr(module, "quantized", None) is not None


def set_codes(model: PreTrainedModel, module: nn.Module, layer: QuantizedWeight | None) -> None:
    """Keep the codes of a module's weights beside them, of a tied embedding and head in both; None,
    or codes that the native decoder cannot read: it has none."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(head, "weight", None) is getattr(embedding, "weight", None)
    kept = layer if layer is not None and is_readable(layer) else None
    place: Any
    for place in (embedding, head) if tied and module in (embedding, head) else (module,):
        place.quantized = kept


def is_readable(layer: QuantizedWeight) -> bool:
    """Whether the native decoder can read the codes of a layer."""
    return layer.group_size % RUN == 0 and layer.basis.plain


@torch.no_grad()
def expand(model: PreTrainedModel, layers: Mapping[str, QuantizedWeight]) -> None:
    """Write the weights of `layers` into `model`."""
    for name, layer in layers.items():
        module = model.get_submodule(name)
        module.get_parameter("weight").copy_(turned(module, layer.dense()))


def pack_model(model: PreTrainedModel, layers: Mapping[str, QuantizedWeight]) -> list[str]:
    """Replace `layers` in `model`, which the native decoder runs, by packed ones. Embedding and
    head are expanded, and their codes kept beside them. Returns the names of those that the decoder
    cannot read as codes, which are expanded, too."""
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
    """Replace packed linears by dense ones."""
    for name, packed in [*model.named_modules()]:
        if isinstance(packed, PackedLinear):
            dense = nn.Linear(packed.in_features, packed.out_features, device="meta")
            dense.weight = nn.Parameter(packed.weight, requires_grad=False)
            dense.bias = packed.bias  # type: ignore[assignment]
            model.set_submodule(name, dense)
