"""A model, in the native decoder or in PyTorch, whose weights can be replaced between passes.

Unchanged weights share memory with the dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.decoding.native.model import NativeModel
from backend.decoding.target_model import TargetModel
from backend.errors import ModelError
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks, swap_weights
from backend.quantization.grid import QuantizedWeight
from backend.quantization.packed_linear import has_codes, set_codes

LiveWeight: TypeAlias = Tensor | QuantizedWeight  # [out, in]


class RunningModel:
    """A copy of a dense model whose weights can be replaced.

    Callers must hold the lock of the dense model while they run or change the copy.

    Args:
        dense: dense model.
        dtype: dtype of the forward passes; the native decoder needs bfloat16.

    Attributes:
        model: model in PyTorch.
        layers: full layer name -> layer.
        blocks: decoder blocks.
        target: target model that generates text; None if the model cannot verify draft trees.
        decoder: name of the decoder; for PyTorch, also the reason why it is used.
    """

    def __init__(self, dense: PreTrainedModel, dtype: torch.dtype) -> None:
        shared = {
            id(p): nn.Parameter(p.data.to(dtype), requires_grad=False) for p in dense.parameters()
        }
        self.model: PreTrainedModel = deepcopy(dense, shared)
        self.layers, self.blocks = layers_of(self.model), decoder_blocks(self.model)
        self._shared_pointers = {p.data_ptr() for p in dense.parameters()}
        self.target: TargetModel | None = None
        try:
            self.target = TargetModel(self.model)
            self.decoder = self.target.decoder
        except ModelError as error:
            self.decoder = f"PyTorch; {error}"

    @property
    def read_bytes(self) -> int | None:
        """Bytes of the weight matrices, all of which are read for each token; None in PyTorch."""
        return self._native.layout.size if self._native else None

    @property
    def nbytes(self) -> int:
        """Bytes of memory in addition to the dense model, including the packed weights of the
        decoder."""
        unshared = sum(
            p.nbytes for p in self.model.parameters() if p.data_ptr() not in self._shared_pointers
        )
        quantized: list[Any] = [x.layer for x in self.layers.values() if has_codes(x.layer)]
        codes = sum(x.quantized.codes.nbytes + 2 * x.quantized.grid.scale.nbytes for x in quantized)
        return unshared + codes + (self.read_bytes or 0)

    @property
    def _native(self) -> NativeModel | None:
        return self.target.native if self.target else None

    @torch.no_grad()
    def write(self, weights: Mapping[str, LiveWeight]) -> None:
        """Replace the weights of layers, full name -> weights [out, in]. The native decoder repacks
        only the matrices of these layers."""
        for name, weight in weights.items():
            layer = self.layers[name]
            codes = weight if isinstance(weight, QuantizedWeight) else None
            dense = weight.dense() if isinstance(weight, QuantizedWeight) else weight
            set_codes(self.model, layer.layer, codes)
            parameter = layer.layer.get_parameter("weight")
            parameter.data = layer.as_stored(dense).to(parameter.dtype)
        if self._native is None:
            return
        changed = {self.layers[name].layer for name in weights}
        for block in {self.layers[name].block for name in weights}:
            if block >= 0:
                self._native.repack(block, self.blocks[block], changed)
            else:
                self._native.repack_outside(self.model)

    @torch.no_grad()
    def logits(self, ids: Tensor, stop: Callable[[], None]) -> Tensor:
        """Compute the logits [L, V], float32, of token ids [L].

        Args:
            ids: token ids [L].
            stop: called between passes, or between blocks in PyTorch; raises an error to stop.
        """
        if self._native is None:
            with ExitStack() as hooks:
                for block in self.blocks:
                    hook = block.register_forward_pre_hook(lambda *_: stop())
                    hooks.callback(hook.remove)
                rows = ids[None].to(self.model.device)
                return self.model(input_ids=rows, use_cache=False).logits[0].float()
        return self._native.read_text(ids, stop=stop)[1]

    @contextmanager
    def with_block_of(self, other: RunningModel, block: int) -> Iterator[None]:
        """Within this context, use the weights of `other` in a block. Both models have the same
        shapes."""
        if self._native and other._native:
            with self._native.borrowed_block(other._native, block):
                yield
            return
        other_weights = (p.data for p in other.blocks[block].parameters())
        with swap_weights(dict(zip(self.blocks[block].parameters(), other_weights, strict=True))):
            yield


def layers_of(model: PreTrainedModel) -> dict[str, LinearWeight]:
    """Map the full name of each layer to the layer, in the order of `ModelFacts`: the layers of the
    blocks, the embedding, and the head unless it is tied to the embedding."""
    layers = {
        x.name: x
        for block in range(len(decoder_blocks(model)))
        for _, x in sorted(block_linears(model, block).items())
    }
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.get_parameter("weight") is embedding.get_parameter("weight")
    for name, module in model.named_modules():
        if module is embedding or (module is head and not tied):
            layers[name] = LinearWeight(name, -1, name, module)
    return layers
