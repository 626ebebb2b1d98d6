"""A transformers model in the layout of `kernels/cpp/decoder.h`.

Where the blocks are packed, the inputs of products are rounded to 8 bits, and a head that is not
quantized is, too (ours, as llama.cpp does); see docs/decoding.md.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from ctypes import addressof, c_int32, c_int64
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.compiler import CompilerError
from backend.decoding.draft_tree import Tree
from backend.decoding.native.blocks import NativeBlocks
from backend.decoding.native.cache import DecodingCache, NativeCache
from backend.decoding.native.families import FAMILIES, LANES, embedding_scale, unsupported
from backend.decoding.native.weights import HEAD_GROUP
from backend.kernels import library as c
from backend.kernels.library import Kernels, kernels
from backend.models.blocks import decoder_blocks, resolve_dtype
from backend.models.families.logits import LogitTransform
from backend.quantization.packed_linear import has_codes

PREFILL = 64  # tokens in one pass over a prompt, or over the prompts of a batch
Read: TypeAlias = tuple[Tensor, Tensor]  # hidden states and logits


def decoding_dtype(precision: str, device: torch.device, architecture: str) -> str:
    """`precision`, or for "auto" the fastest one to decode with: "bfloat16" or "float32".

    Where this decoder can be built it is faster in bfloat16 than PyTorch in float32, on processors
    without bfloat16 instructions, too: half as many bytes are read for a token.
    """
    if precision == "auto" and device.type == "cpu" and architecture in FAMILIES.values():
        with suppress(CompilerError):
            kernels()
            return "bfloat16"
    return resolve_dtype(precision, device)


def obstacle(model: PreTrainedModel) -> str:
    """Why the native decoder does not run a model here; empty if it does."""
    if why := unsupported(model):
        return f"The native decoder does not run this model: {why}."
    try:
        kernels()
    except CompilerError as error:
        return str(error)
    return ""


class Segment(NamedTuple):
    """What a pass appends to one sequence: the next tokens `ids`, or those of a `tree`; logits are
    wanted of the last `read_out`."""

    cache: DecodingCache
    ids: Sequence[int]
    tree: Tree | None = None
    read_out: int = 0


class NativeModel(NativeBlocks):
    """A model whose passes the kernels compute. `model`: for which `families.unsupported` is
    empty; its embeddings are read in place."""

    def __init__(
        self, model: PreTrainedModel, instructions: Kernels | None = None, sparse: bool = True
    ) -> None:
        super().__init__(model, decoder_blocks(model), instructions, sparse=sparse)
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

    def relay_outside(self, model: PreTrainedModel) -> None:
        """Read embedding and head anew; see `relay`."""
        source: Any = model.get_input_embeddings()
        head, s = model.get_output_embeddings(), self.structure
        table: Tensor = source.weight.detach().bfloat16().contiguous()
        old, read_out = s.embedding, c.Matrix.from_buffer_copy(s.read_out)
        self.require(table.shape, (self.vocabulary, self.width))
        s.read_out = self.layout.matrix(head)
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
        self, ids: Tensor, cache: NativeCache, tree: Tree | None = None, read_out: int = 0
    ) -> Read:
        """A pass over one segment; see `run`."""
        return self.run([Segment(cache, ids.tolist(), tree, read_out)])[0]

    def run(self, segments: Sequence[Segment]) -> list[Read]:
        """One pass over segments of several sequences. Of each the hidden states [n, width] in
        bfloat16, and the logits [read_out, vocabulary] in float32."""
        ids, positions, rows, last = list[int](), list[int](), list[int](), self._stable - 1
        caches = [x.cache for x in segments if isinstance(x.cache, NativeCache)]
        for segment in segments:
            start, number = segment.cache.length, len(segment.ids)
            if not 0 <= segment.read_out <= number or number != len(segment.tree or segment.ids):
                why = f"{segment.read_out} logits of {number} tokens; its tree is {segment.tree}"
                raise ValueError(f"a segment does not fit itself: {why}")
            ids += segment.ids
            if segment.tree:  # nodes beyond the last position are never kept
                positions += [min(start + depth, last) for depth in segment.tree.depths]
            else:
                positions += range(start, start + number)
            rows += range(len(ids) - segment.read_out, len(ids))
        if not ids or min(ids) < 0 or max(ids) >= self.vocabulary:
            raise ValueError(f"token ids lie outside 0 to {self.vocabulary - 1}")
        held, chosen = (c_int64 * len(ids))(*ids), (c_int32 * len(rows))(*rows)
        logits = torch.empty(len(rows), self._outputs, dtype=torch.float32)
        task = c.Pass(ids=addressof(held), read_out=len(rows), rows=addressof(chosen))
        task.logits = logits.data_ptr()
        lengths = [len(segment.ids) for segment in segments]
        masks = [None if x.tree is None else x.tree.mask for x in segments]
        hidden = self._run(task, lengths, caches, positions, masks).bfloat16()
        logits = logits[:, : self.vocabulary]
        if len(segments) == 1:
            return [(hidden, logits)]
        read_out = [segment.read_out for segment in segments]
        return [*zip(hidden.split(lengths), logits.split(read_out), strict=True)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocabulary] in float32 of hidden states [n, width], as a pass computes them
        from its own."""
        states, s = hidden.float().contiguous(), self.structure
        self.require(states.shape, (len(states), self.width))
        raw = torch.empty(len(states), self._outputs, dtype=torch.float32)
        places = s.read_out, states.data_ptr(), raw.data_ptr(), len(states)
        c.check(self._kernels.linear(*places, torch.get_num_threads()))
        return LogitTransform(s.logit_scale, s.logit_cap)(raw[:, : self.vocabulary])

    def read(self, ids: Tensor, cache: NativeCache) -> Tensor:
        """Append a prompt [n] to the cache; returns its hidden states [n, width]."""
        return torch.cat([self.forward(some, cache)[0] for some in ids.split(PREFILL)])

    def read_text(
        self, ids: Tensor, tokens: int = PREFILL, stop: Callable[[], None] = lambda: None
    ) -> Read:
        """Hidden states [L, width] and logits [L, vocabulary] of a text [L], in passes over so many
        tokens; `stop`: called between them; may raise."""
        cache, found = self.new_cache(len(ids)), list[Read]()
        for part in ids.split(tokens):
            stop()
            found.append(self.forward(part, cache, read_out=len(part)))
        # joined with nothing, the logits of most texts, which are one pass, would be copied
        hidden, logits = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
        return hidden, logits
