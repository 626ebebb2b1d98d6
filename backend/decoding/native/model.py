"""Transformers model in the layout of `kernels/cpp/decoder.h`.

If the weights are packed, the inputs of products are rounded to 8 bits, and so is a head that is
not quantized. This is our choice, as in llama.cpp; see docs/decoding.md.
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

PREFILL = 64  # maximum number of prompt tokens per pass
Read: TypeAlias = tuple[Tensor, Tensor]  # hidden states and logits


def decoding_dtype(precision: str, device: torch.device, architecture: str) -> str:
    """Resolve "auto" to the precision that decodes fastest, "bfloat16" or "float32".

    The native decoder in bfloat16 is faster than PyTorch in float32 even on processors without
    bfloat16 instructions, because a token reads half as many bytes.
    """
    if precision == "auto" and device.type == "cpu" and architecture in FAMILIES.values():
        with suppress(CompilerError):
            kernels()
            return "bfloat16"
    return resolve_dtype(precision, device)


def obstacle(model: PreTrainedModel) -> str:
    """Return the reason why the native decoder cannot run a model here; "" if it can."""
    if why := unsupported(model):
        return f"The native decoder does not run this model: {why}."
    try:
        kernels()
    except CompilerError as error:
        return str(error)
    return ""


class Segment(NamedTuple):
    """Tokens that a pass appends to one sequence.

    Attributes:
        cache: cache of the sequence.
        ids: token ids.
        tree: draft tree whose nodes are `ids`; None if `ids` are consecutive tokens.
        read_out: number of last tokens to compute logits for.
    """

    cache: DecodingCache
    ids: Sequence[int]
    tree: Tree | None = None
    read_out: int = 0


class NativeModel(NativeBlocks):
    """Model whose forward passes run in the kernels.

    Args:
        model: model that the decoder supports (`families.unsupported`). Its embedding is shared,
            not copied, if it is in bfloat16.
        instructions: kernels to use; None for the best.
        sparse: store pruned weights without zeros if this is faster for a few tokens.

    Attributes:
        vocabulary: number of tokens in the vocabulary.
    """

    def __init__(
        self, model: PreTrainedModel, instructions: Kernels | None = None, sparse: bool = True
    ) -> None:
        super().__init__(model, decoder_blocks(model), instructions, sparse=sparse)
        inner: Any = model.base_model
        source: Any = inner.get_input_embeddings()
        self.structure.embedding_scale = embedding_scale(source)
        embedding: Tensor = source.weight.detach().bfloat16().contiguous()  # usually not a copy
        self.vocabulary = len(embedding)
        self.require(embedding.shape, (self.vocabulary, self.width))
        self.structure.embedding = self.layout.own(embedding)
        self.structure.final_norm = self.norm(inner.norm, self.width)
        transform = LogitTransform.of(model.config.get_text_config())
        self.structure.logit_scale, self.structure.logit_cap = transform.scale, transform.cap
        head: Any = model.get_output_embeddings()
        packed = any(map(has_codes, model.modules())) and not has_codes(head)
        in_8_bits = (
            packed and not self.width % HEAD_GROUP
        )  # in bfloat16, it could be half of all bytes
        self.structure.read_out = (self.layout.int8 if in_8_bits else self.layout.matrix)(head)
        self._outputs = -(-self.vocabulary // LANES) * LANES
        read_out = self.structure.read_out
        self.require((read_out.outputs, read_out.inputs), (self._outputs, self.width))

    def repack_outside(self, model: PreTrainedModel) -> None:
        """Repack the embedding and the head; see `repack`."""
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
        """Return the blocks [start, end) as a model that shares the weights.

        Its input are token ids, or the inputs of block `start`. Its hidden states are the inputs of
        block `end`, or those of the entire model if `end` is the number of blocks.
        """
        part, full = copy(self), self.structure
        part._layers = (c.Layer * (end - start))(*self._layers[start:end])
        part.structure = s = c.Model.from_buffer_copy(full)
        s.layers, s.layer = end - start, part._layers
        if end < full.layers:
            s.final_norm = None
        return part

    def forward(
        self, ids: Tensor, cache: NativeCache, tree: Tree | None = None, read_out: int = 0
    ) -> Read:
        """Run a pass over one segment; see `run`."""
        return self.run([Segment(cache, ids.tolist(), tree, read_out)])[0]

    def run(self, segments: Sequence[Segment]) -> list[Read]:
        """Run a pass over segments of several sequences.

        Returns:
            hidden states [n, width], bfloat16, and logits [read_out, vocabulary], float32, of each
            segment.

        Raises:
            ValueError: a segment is inconsistent, or a token id is out of range.
        """
        ids, positions, rows, last = list[int](), list[int](), list[int](), self._stable - 1
        caches = [x.cache for x in segments if isinstance(x.cache, NativeCache)]
        for segment in segments:
            start, number = segment.cache.length, len(segment.ids)
            if not 0 <= segment.read_out <= number or number != len(segment.tree or segment.ids):
                problem = f"{segment.read_out} logits of {number} tokens, tree {segment.tree}"
                raise ValueError(f"inconsistent segment: {problem}")
            ids += segment.ids
            if segment.tree:  # nodes past the last position are never accepted
                positions += [min(start + depth, last) for depth in segment.tree.depths]
            else:
                positions += range(start, start + number)
            rows += range(len(ids) - segment.read_out, len(ids))
        if not ids or min(ids) < 0 or max(ids) >= self.vocabulary:
            raise ValueError(f"token ids lie outside 0 to {self.vocabulary - 1}")
        id_array, row_array = (c_int64 * len(ids))(*ids), (c_int32 * len(rows))(*rows)
        logits = torch.empty(len(rows), self._outputs, dtype=torch.float32)
        task = c.Pass(ids=addressof(id_array), read_out=len(rows), rows=addressof(row_array))
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
        """Compute the logits [n, vocabulary], float32, of hidden states [n, width], exactly as in a
        pass."""
        states, s = hidden.float().contiguous(), self.structure
        self.require(states.shape, (len(states), self.width))
        raw = torch.empty(len(states), self._outputs, dtype=torch.float32)
        pointers = states.data_ptr(), raw.data_ptr()
        threads = torch.get_num_threads()
        c.check(self._kernels.linear(s.read_out, *pointers, len(states), threads))
        return LogitTransform(s.logit_scale, s.logit_cap)(raw[:, : self.vocabulary])

    def read(self, ids: Tensor, cache: NativeCache) -> Tensor:
        """Append a prompt [n] to a cache; return its hidden states [n, width]."""
        return torch.cat([self.forward(part, cache)[0] for part in ids.split(PREFILL)])

    def read_text(
        self, ids: Tensor, tokens: int = PREFILL, stop: Callable[[], None] = lambda: None
    ) -> Read:
        """Compute the hidden states [L, width] and logits [L, vocabulary] of a text.

        Args:
            ids: token ids [L].
            tokens: tokens per pass.
            stop: called between passes; may raise to stop.
        """
        cache, results = self.new_cache(len(ids)), list[Read]()
        for part in ids.split(tokens):
            stop()
            results.append(self.forward(part, cache, read_out=len(part)))
        # Most texts are one pass; torch.cat would copy its logits.
        if len(results) == 1:
            return results[0]
        hidden, logits = map(torch.cat, zip(*results, strict=True))
        return hidden, logits
