"""A transformers model in the layout of `cpp/decoder.cpp`.

Where the blocks are packed, the inputs of products are rounded to 8 bits, and a head that is not
quantised is, too (ours, as llama.cpp does); see docs/decoding.md.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.compiler import NATIVE, CompilerError
from backend.decoding.draft_tree import Tree
from backend.decoding.native import library as c
from backend.decoding.native.blocks import NativeBlocks
from backend.decoding.native.cache import DecodingCache, NativeCache
from backend.decoding.native.families import FAMILIES, LANES, embedding_scale
from backend.decoding.native.library import library
from backend.decoding.native.weights import HEAD_GROUP
from backend.models.blocks import decoder_blocks, resolve_dtype
from backend.models.families.logits import LogitTransform
from backend.quantization.grid import QuantizedWeight
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


@dataclass(frozen=True)
class Segment:
    """What a pass appends to one sequence: the next tokens `ids`, or those of a `tree`; logits are
    wanted of the last `read_out`."""

    cache: DecodingCache
    ids: Sequence[int]
    tree: Tree | None = None
    read_out: int = 0


class NativeModel(NativeBlocks):
    """A model whose passes `cpp/decoder.cpp` computes. `model`: for which `families.unsupported` is
    empty; its embeddings are read in place."""

    def __init__(
        self, model: PreTrainedModel, target: tuple[str, ...] = NATIVE, sparse: bool = True
    ) -> None:
        super().__init__(model, decoder_blocks(model), target, sparse=sparse)
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

    def relay_outside(
        self, model: PreTrainedModel, codes: Mapping[nn.Module, QuantizedWeight]
    ) -> None:
        """Read embedding and head anew, the head as its `codes` where it has some; see `relay`."""
        source: Any = model.get_input_embeddings()
        head, s = model.get_output_embeddings(), self.structure
        table: Tensor = source.weight.detach().bfloat16().contiguous()
        old, read_out = s.embedding, c.Matrix.from_buffer_copy(s.read_out)
        self.require(table.shape, (self.vocabulary, self.width))
        s.read_out = self.layout.matrix(head, codes=[codes[head]] if head in codes else ())
        s.embedding = self.layout.own(table)
        self.layout.release_matrix(read_out)
        if s.embedding != old:
            self.layout.release(old)

    def part(self, start: int, end: int) -> "NativeModel":
        """Its blocks [start, end), which read the same weights: of the ids or states before them
        they give what enters block number `end`, or behind the last the hidden states."""
        made, whole = copy(self), self.structure
        made._layers = (c.Layer * (end - start))(*self._layers[start:end])
        made.structure = s = c.Model.from_buffer_copy(whole)
        s.layers, s.layer = end - start, made._layers
        if end < whole.layers:
            s.final_norm = None
        return made

    def forward(
        self,
        ids: Tensor,
        cache: NativeCache,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
        read_out: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [n, width] in bfloat16 of the tokens `ids` [n], which are appended to the
        cache, and logits [read_out, vocabulary] in float32 of the last; see `NativeBlocks`."""
        if ids.dim() != 1:
            raise ValueError(f"the ids {[*ids.shape]} are no row")
        return self._pass(ids, [len(ids)], [cache], positions, [visible], [read_out])

    def forward_segments(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
        """One pass over segments of several sequences: hidden states [n, width] of all tokens, and
        logits [r, vocabulary] of those that are read out, segment after segment."""
        ids, positions = list[int](), list[int]()
        caches = [x.cache for x in segments if isinstance(x.cache, NativeCache)]
        for segment in segments:
            start, tree = segment.cache.length, segment.tree
            ids += segment.ids
            depths = range(len(segment.ids)) if tree is None else tree.depths
            positions += [start + depth for depth in depths]
        visible = [None if x.tree is None else x.tree.ancestors() for x in segments]
        lengths, read_out = [len(x.ids) for x in segments], [x.read_out for x in segments]
        places = torch.tensor(positions)
        return self._pass(torch.tensor(ids), lengths, caches, places, visible, read_out)

    def _pass(
        self,
        ids: Tensor,
        lengths: Sequence[int],
        caches: Sequence[NativeCache],
        positions: Tensor | None,
        visible: Sequence[Tensor | None],
        read_out: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """As many of the tokens `ids` [n] for each of the caches, and the logits of the last
        `read_out` of them; see `forward`."""
        if sum(lengths) != len(ids) or len(read_out) != len(lengths):
            raise ValueError(f"{len(ids)} tokens are not {[*lengths]}, read out: {[*read_out]}")
        if any(not 0 <= wanted <= n for wanted, n in zip(read_out, lengths, strict=True)):
            raise ValueError(f"{[*read_out]} logits cannot be read of {[*lengths]} tokens")
        if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary:
            raise ValueError(f"token ids lie outside 0 to {self.vocabulary - 1}")
        ends = zip(accumulate(lengths), read_out, strict=True)
        rows = [row for end, wanted in ends for row in range(end - wanted, end)]
        held, chosen = ids.long().contiguous(), torch.tensor(rows, dtype=torch.int32)
        logits = torch.empty(len(rows), self._outputs, dtype=torch.float32)
        task = c.Pass(ids=held.data_ptr(), read_out=len(rows), rows=chosen.data_ptr())
        task.logits = logits.data_ptr()
        hidden = self._run(task, lengths, caches, positions, visible)
        return hidden.bfloat16(), logits[:, : self.vocabulary]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocabulary] in float32 of hidden states [n, width], as a pass computes them
        from its own."""
        states, s = hidden.float().contiguous(), self.structure
        self.require(states.shape, (len(states), self.width))
        raw = torch.empty(len(states), self._outputs, dtype=torch.float32)
        places = s.read_out, states.data_ptr(), raw.data_ptr(), len(states)
        if self._library.slimscope_linear(*places, torch.get_num_threads()):
            raise MemoryError("The native decoder ran out of memory or threads.")
        return LogitTransform(s.logit_scale, s.logit_cap)(raw[:, : self.vocabulary])

    def read(self, ids: Tensor, cache: NativeCache) -> Tensor:
        """Append a prompt [n] to the cache; returns its hidden states [n, width]."""
        states = [self.forward(some, cache)[0] for some in ids.split(PREFILL) if len(some)]
        return torch.cat(states) if states else torch.empty(0, self.width, dtype=torch.bfloat16)
