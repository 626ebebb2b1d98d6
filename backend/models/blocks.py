"""Uniform access to decoder blocks and their linears, of attention and MLP. Weights are presented
as [out, in]; GPT-2's `Conv1D` stores [in, out] and is transposed on reading and writing."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backend.errors import ModelError
from backend.models.families.stored import compressed


@dataclass(frozen=True)
class LinearWeight:
    """One prunable weight matrix."""

    name: str  # full dotted module name, as in `model.named_modules()`
    block: int  # index of its decoder block
    module: str  # its name inside that block
    layer: nn.Module  # the module itself, for hooks

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self._oriented().shape
        return rows, columns

    @property
    def columns(self) -> int:
        """Inputs."""
        return self.shape[1]

    def _oriented(self) -> Tensor:
        """A view of the layer's weight as [out, in]."""
        return turned(self.layer, self.layer.get_parameter("weight").detach())

    def read(self) -> Tensor:
        """A float32 copy of the weight [out, in] on the layer's device."""
        return self._oriented().to(torch.float32, copy=True).contiguous()

    def as_stored(self, W: Tensor) -> Tensor:
        """`W` [out, in] in the orientation the layer stores."""
        return turned(self.layer, W)

    def write(self, W: Tensor) -> None:
        """Write `W` [out, in] in place, cast to the layer's dtype. Raises ValueError: `W` has
        another shape."""
        if tuple(W.shape) != self.shape:
            raise ValueError(f"{self.name} is {self.shape}, not {tuple(W.shape)}")
        self._oriented().copy_(W.detach())


def turned(layer: nn.Module, W: Tensor) -> Tensor:
    """A view of weights [out, in] as the layer stores them, or of those it stores as [out, in]."""
    return W.T if isinstance(layer, Conv1D) else W


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of `model`, in order. Raises ModelError: no list of blocks was found."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    what = f"{type(model).__name__} cannot be compressed."
    do = "Choose a decoder-only model such as LLaMA, Qwen, Mistral, Gemma, Phi, OPT or GPT-2."
    raise ModelError(what, f"No list of {depth} decoder blocks was found in it.", do, field="model")


def block_prefix(model: PreTrainedModel) -> str:
    """The dotted name of the list of decoder blocks: model.layers."""
    blocks = decoder_blocks(model)
    return next(name for name, module in model.named_modules() if module is blocks)


def block_linears(model: PreTrainedModel, index: int) -> dict[str, LinearWeight]:
    """Module name inside block `index` -> its linear, in the order of the model's definition.

    Only attention and MLP: see `compressed`."""
    block, prefix = decoder_blocks(model)[index], f"{block_prefix(model)}.{index}"
    return {
        module: LinearWeight(f"{prefix}.{module}", index, module, layer)
        for module, layer in block.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and compressed(module)
    }


def all_linears(model: PreTrainedModel) -> list[LinearWeight]:
    """The linears of all blocks, in order."""
    blocks = range(len(decoder_blocks(model)))
    return [linear for block in blocks for linear in block_linears(model, block).values()]
