"""A transformers model in the layout of `cpp/decoder.cpp`.

Where the blocks are packed, the inputs of products are rounded to 8 bits, and a head that is not
quantised is, too (ours, as llama.cpp does); see docs/decoding.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.decoding.native import structures as c
from backend.decoding.native.blocks import NativeBlocks, NativeCache
from backend.decoding.native.compiler import NATIVE, CompilerError, library
from backend.decoding.native.families import FAMILIES, LANES, embedding_scale
from backend.decoding.native.weights import HEAD_GROUP
from backend.models.blocks import decoder_blocks
from backend.models.families.logits import LogitTransform
from backend.models.precision import resolve_dtype
from backend.quantization.packed_linear import has_codes

PREFILL = 64  # tokens in one pass over a prompt, or over the prompts of a batch


def decoding_dtype(precision: str, device: torch.device, architecture: str) -> str:
    """`precision`, or for "auto" the fastest one to decode with: "bfloat16" or "float32".

    Where this decoder can be built it is faster in bfloat16 than PyTorch in float32, on processors
    without bfloat16 instructions, too: half as many bytes are read for a token.
    """
    if precision == "auto" and device.type == "cpu" and architecture in FAMILIES.values():
        with suppress(CompilerError):
            library()
            return "bfloat16"
    return resolve_dtype(precision, device)


class NativeModel(NativeBlocks):
    """A model whose passes `cpp/decoder.cpp` computes.

    Args:
        model: for which `families.unsupported` is empty; its embeddings are read in place.
    """

    def __init__(self, model: PreTrainedModel, target: tuple[str, ...] = NATIVE) -> None:
        super().__init__(model, decoder_blocks(model), target)
        inner: Any = model.base_model
        source: Any = inner.get_input_embeddings()
        self.structure.embedding_scale = embedding_scale(source)
        embedding: Tensor = source.weight.detach().bfloat16().contiguous()  # mostly as it is
        self.vocabulary = len(embedding)
        self.require(embedding.shape, (self.vocabulary, self.width))
        self.structure.embedding = self.layout.own(embedding)
        self.structure.final_norm = self.norm(inner.norm, self.width)
        transform = LogitTransform.of(model.config.get_text_config())
        self.structure.logit_scale, self.structure.logit_cap = transform.scale, transform.cap
        head: Any = model.get_output_embeddings()
        packed = any(map(has_codes, model.modules())) and not has_codes(head)
        in_8_bits = packed and not self.width % HEAD_GROUP  # else it would be half of the bytes
        self.structure.read_out = (self.layout.int8 if in_8_bits else self.layout.matrix)(head)
        self._outputs = -(-self.vocabulary // LANES) * LANES
        found = self.structure.read_out.outputs, self.structure.read_out.inputs
        self.require(found, (self._outputs, self.width))

    def forward(
        self, ids: Tensor, cache: NativeCache,
        positions: Tensor | None = None, visible: Tensor | None = None, read_out: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Hidden states [n, width] in bfloat16 of the tokens `ids` [n], which are appended to the
        cache, and logits [read_out, vocabulary] in float32 of the last; see `NativeBlocks`."""
        return self._pass(ids, [cache], positions, visible, read_out)

    def forward_batch(self, ids: Tensor, caches: Sequence[NativeCache]) -> tuple[Tensor, Tensor]:
        """The same [b, n, ...] of the next tokens `ids` [b, n] of b sequences, in one pass."""
        found = self._pass(ids.flatten(), caches, None, None, ids.numel())
        hidden, logits = (x.unflatten(0, ids.shape) for x in found)
        return hidden, logits

    def _pass(
        self, ids: Tensor, caches: Sequence[NativeCache],
        positions: Tensor | None, visible: Tensor | None, read_out: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As many of the tokens `ids` [n] for each of the caches; see `forward`."""
        if ids.dim() != 1 or not 0 <= read_out <= len(ids):
            raise ValueError(f"{read_out} logits cannot be read of {[*ids.shape]} tokens")
        if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary:
            raise ValueError(f"token ids lie outside 0 to {self.vocabulary - 1}")
        held, logits = ids.long().contiguous(), torch.empty(read_out, self._outputs)
        task = c.Pass(ids=held.data_ptr(), read_out=read_out, logits=logits.data_ptr())
        hidden = self._run(task, len(ids), caches, positions, visible)
        return hidden.bfloat16(), logits[:, : self.vocabulary]

    def read(self, ids: Tensor, cache: NativeCache) -> Tensor:
        """Append a prompt [n] to the cache; returns its hidden states [n, width]."""
        states = [self.forward(some, cache)[0] for some in ids.split(PREFILL) if len(some)]
        return torch.cat(states) if states else torch.empty(0, self.width, dtype=torch.bfloat16)
