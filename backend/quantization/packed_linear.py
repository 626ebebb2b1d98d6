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
    return hasattr(module, "quantized")


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
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(head, "weight", None) is getattr(embedding, "weight", None)
    readable = {n: x for n, x in layers.items() if not x.group_size % RUN and x.basis.plain}
    for name, layer in layers.items():
        module: Any = model.get_submodule(name)
        if name in readable and module not in (embedding, head):
            model.set_submodule(name, PackedLinear(layer, module.bias))
            continue
        expand(model, {name: layer})
        for place in (embedding, head) if tied else (module,):
            if name in readable:
                place.quantized = layer
    return [name for name in layers if name not in readable]


def unpack_model(model: PreTrainedModel) -> None:
    """Replace packed linears by dense ones."""
    for name, packed in [*model.named_modules()]:
        if isinstance(packed, PackedLinear):
            dense = nn.Linear(packed.in_features, packed.out_features, device="meta")
            dense.weight = nn.Parameter(packed.weight, requires_grad=False)
            dense.bias = packed.bias  # type: ignore[assignment]
            model.set_submodule(name, dense)
