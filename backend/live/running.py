"""A model whose weights are exchanged while it runs: in the native decoder's own layout where that
runs it, else in PyTorch. What is not changed shares its memory with the dense model."""

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
    """See above. Whoever runs it or changes it holds the lock of its dense model. `dtype`: of the
    passes; bfloat16 for the native decoder.

    Attributes:
        target: writes text; None where a model cannot verify trees.
        decoder: what computes the passes, in words.
    """

    def __init__(self, dense: PreTrainedModel, dtype: torch.dtype) -> None:
        shared = {
            id(p): nn.Parameter(p.data.to(dtype), requires_grad=False) for p in dense.parameters()
        }
        self.model: PreTrainedModel = deepcopy(dense, shared)
        self.layers, self.blocks = layers_of(self.model), decoder_blocks(self.model)
        self._dense = {p.data_ptr() for p in dense.parameters()}
        self.target: TargetModel | None = None
        try:
            self.target = TargetModel(self.model)
            self.decoder = self.target.decoder
        except ModelError as error:
            self.decoder = f"PyTorch; {error}"

    @property
    def read_bytes(self) -> int | None:
        """Bytes that a token reads of the matrices; None where PyTorch computes."""
        return self._native.layout.size if self._native else None

    @property
    def nbytes(self) -> int:
        """Bytes in memory beside the dense model's, the native layout included."""
        own = [p for p in self.model.parameters() if p.data_ptr() not in self._dense]
        held: list[Any] = [x.layer for x in self.layers.values() if has_codes(x.layer)]
        codes = sum(x.quantized.codes.nbytes + 2 * x.quantized.grid.scale.nbytes for x in held)
        return sum(p.nbytes for p in own) + codes + (self.read_bytes or 0)

    @property
    def _native(self) -> NativeModel | None:
        return self.target.native if self.target else None

    @torch.no_grad()
    def write(self, weights: Mapping[str, LiveWeight]) -> None:
        """Exchange the weights of some layers, and lay out only the matrices they are part of."""
        for name, made in weights.items():
            layer = self.layers[name]
            codes = made if isinstance(made, QuantizedWeight) else None
            dense = made.dense() if isinstance(made, QuantizedWeight) else made
            set_codes(self.model, layer.layer, codes)
            parameter = layer.layer.get_parameter("weight")
            parameter.data = layer.as_stored(dense).to(parameter.dtype)
        if self._native is None:
            return
        changed = {self.layers[name].layer for name in weights}
        for block in {self.layers[name].block for name in weights}:
            if block >= 0:
                self._native.relay(block, self.blocks[block], changed)
            else:
                self._native.relay_outside(self.model)

    @torch.no_grad()
    def logits(self, ids: Tensor, stop: Callable[[], None]) -> Tensor:
        """Of token ids [L], each after those before it: [L, V] float32. `stop`: called between
        passes, or in PyTorch between blocks; may raise."""
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
        """With a block of another model of the same shapes for its own."""
        if self._native and other._native:
            with self._native.borrowing(other._native, block):
                yield
            return
        theirs = (p.data for p in other.blocks[block].parameters())
        with swap_weights(dict(zip(self.blocks[block].parameters(), theirs, strict=True))):
            yield


def layers_of(model: PreTrainedModel) -> dict[str, LinearWeight]:
    """Full name -> layer, in the order of `ModelFacts`: those of the blocks, embedding, and a head
    that is not tied to it."""
    found = {
        x.name: x
        for block in range(len(decoder_blocks(model)))
        for _, x in sorted(block_linears(model, block).items())
    }
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.get_parameter("weight") is embedding.get_parameter("weight")
    for name, module in model.named_modules():
        if module is embedding or (module is head and not tied):
            found[name] = LinearWeight(name, -1, name, module)
    return found
