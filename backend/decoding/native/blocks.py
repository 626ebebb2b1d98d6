"""Decoder blocks in the layout of `kernels/cpp/decoder.h`, and forward passes through them."""

import ctypes
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_int32, c_int64
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.decoding.native.cache import CacheBlock, CacheBlocks, NativeCache
from backend.decoding.native.families import (
    ACTIVATIONS,
    LANES,
    activation_of,
    attention_cap,
    head_size,
    norm_shift,
    rotary_types,
    stable_context,
    window_of,
)
from backend.decoding.native.weights import WeightLayout
from backend.kernels import library as c
from backend.kernels.library import Kernels, kernels

MOST_ROWS = 2**24  # maximum capacity of a cache


class NativeBlocks:
    """Decoder blocks that map hidden states to hidden states.

    Args:
        model: model that the decoder supports (`families.unsupported`); provides the config and the
            rotary embedding.
        blocks: blocks of the model, or other blocks with the same shapes.
        instructions: kernels to use; None for the best.
        rounded: round weights that are not packed to 8 bits.
        sparse: store pruned weights without zeros if this is faster for a few tokens. It is slower
            for many tokens.

    Attributes:
        instructions: display name of the instruction set.
        layout: packed weights.
        width: size of the hidden states.

    Raises:
        CompilerError: the kernels cannot be built here.
        ValueError: the shape of a weight does not match the config.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Iterable[nn.Module],
        instructions: Kernels | None = None,
        rounded: bool = False,
        sparse: bool = True,
    ) -> None:
        self._kernels = instructions or kernels()
        self.instructions = self._kernels.title
        self.layout = WeightLayout(self._kernels, rounded, sparse)
        self._tabulating = threading.Lock()
        inner: Any = model.base_model
        self._rotary: nn.Module = inner.rotary_emb
        self._rows = 0  # positions in the rotary tables
        config = model.config.get_text_config()
        self.width = config.hidden_size
        self._stable, self._shift = stable_context(config), norm_shift(config)
        self._types = rotary_types(self._rotary)
        self.structure = c.Model(
            0,
            self.width,
            config.num_attention_heads,
            config.num_key_value_heads,
            head_size(config),
            config.intermediate_size,
            2 * self._angles(1)[0][0].shape[1],
            ACTIVATIONS[activation_of(config)],
            config.rms_norm_eps,
            embedding_scale=1.0,
            logit_scale=1.0,
        )
        s = self.structure
        if s.rotated > s.head or len(self._types) > c.ROTARIES:
            raise ValueError(
                f"the rotary embedding covers {s.rotated} of {s.head} values of a head"
            )
        if any(size <= 0 or size % LANES for size in (s.width, s.head, s.inner)):
            raise ValueError(f"the widths are not multiples of {LANES}")
        if s.heads <= 0 or s.kv_heads <= 0 or s.heads % s.kv_heads:
            raise ValueError(f"{s.heads} query heads cannot share {s.kv_heads} key heads")
        blocks = [*blocks]
        attention: Any = blocks[0].self_attn
        s.attention_scale, s.attention_cap = attention.scaling, attention_cap(attention)
        layers = [*map(self._layer, blocks)]
        self._layers = (c.Layer * len(layers))(*layers)
        self.structure.layers, self.structure.layer = len(layers), self._layers

    def call(self, function: str, *arguments: object) -> None:
        """Call a kernel on these blocks. Raises `MemoryError` if memory or threads run out."""
        c.check(getattr(self._kernels, function)(self.structure, *arguments))

    def new_blocks(self) -> CacheBlocks:
        """Create an allocator of cache blocks, which several caches can share."""
        s = self.structure
        return CacheBlocks(2 * s.layers * s.kv_heads * s.head)

    def new_cache(
        self, capacity: int, blocks: CacheBlocks | None = None, prefix: Sequence[CacheBlock] = ()
    ) -> NativeCache:
        """Create a cache.

        Args:
            capacity: maximum number of tokens.
            blocks: allocator of blocks; None for a new one.
            prefix: full blocks of another cache that hold the first tokens.

        Raises:
            ValueError: the capacity is out of range, or smaller than the prefix.
        """
        if not 0 < capacity <= MOST_ROWS or len(prefix) * c.BLOCK > capacity:
            raise ValueError(f"a cache cannot hold {capacity} tokens")
        with self._tabulating:
            if min(capacity, self._stable) > self._rows:
                # at most up to the position from which the frequencies would change
                positions, s = min(max(capacity, 2 * self._rows), self._stable), self.structure
                for index, tables in enumerate(self._angles(positions)):
                    for table in tables:
                        self.require(table.shape, (positions, s.rotated // 2))
                    # the old tables stay in memory: a pass of another thread may be reading them
                    s.cosines[index], s.sines[index] = map(self.layout.own, tables)
                self._rows = positions
        blocks = blocks or self.new_blocks()
        return NativeCache(self.call, blocks, capacity, prefix, len(prefix) * c.BLOCK)

    def __call__(
        self,
        states: Tensor,
        cache: NativeCache,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Run a pass that appends n tokens to a cache.

        Args:
            states: hidden states [n, width].
            cache: cache of the sequence.
            positions: positions [n]; None for those that follow the cached tokens.
            visible: tree mask [n, n], bool: the tokens of the pass that each token attends to; None
                for causal attention.

        Returns:
            hidden states [n, width], float32.

        Raises:
            ValueError: a shape is wrong, or a token of a tree does not attend to itself.
        """
        if states.dim() != 2 or states.shape[1] != self.width:
            raise ValueError(f"the states {[*states.shape]} are not {self.width} wide")
        mask = None
        if visible is not None:
            if visible.shape != (len(states), len(states)) or not visible.diagonal().all():
                raise ValueError(
                    f"a tree mask of {len(states)} tokens needs a square shape and a diagonal"
                )
            mask = visible.to(torch.uint8).contiguous()
        inputs = states.float().contiguous()
        following = range(cache.length, cache.length + len(states))
        return self._run(
            c.Pass(inputs=inputs.data_ptr()),
            [len(states)],
            [cache],
            following if positions is None else positions.tolist(),
            [mask],
        )

    def _run(
        self,
        task: c.Pass,
        lengths: Sequence[int],
        caches: Sequence[NativeCache],
        positions: Sequence[int],
        masks: Sequence[Tensor | None],
    ) -> Tensor:
        """Run a pass that appends tokens to one or several caches.

        Args:
            task: arguments of the pass; those that follow from the other arguments are filled in.
            lengths: number of tokens per cache.
            caches: caches of the sequences.
            positions: positions of all tokens.
            masks: tree mask of each sequence, uint8; None for causal attention.

        Returns:
            hidden states [n, width], float32.

        Raises:
            ValueError: an argument is out of range, so the library would corrupt memory.
        """
        tokens, is_distinct = sum(lengths), len({*map(id, caches)}) == len(caches)
        if not (len(lengths) == len(caches) == len(masks)) or min(lengths, default=0) < 1:
            raise ValueError(f"{[*lengths]} tokens cannot be appended to {len(caches)} caches")
        if not is_distinct or any(cache.call != self.call for cache in caches):
            raise ValueError("a cache belongs to another model, or occurs twice in the pass")
        if len(positions) != tokens or min(positions) < 0 or max(positions) >= self._rows:
            raise ValueError(f"the positions {[*positions]} do not fit the pass or the cache")
        for length, cache in zip(lengths, caches, strict=True):
            cache.make_room(length)
        # Explicit dtype: another thread that builds a model may have changed the default.
        hidden = torch.empty(tokens, self.width, dtype=torch.float32)
        position_array, starts = (c_int64 * tokens)(*positions), [*accumulate(lengths, initial=0)]
        start_array = (c_int32 * len(starts))(*starts)
        addresses = (None if mask is None else mask.data_ptr() for mask in masks)
        mask_array = (ctypes.c_void_p * len(masks))(*addresses)
        pointers = [ctypes.pointer(cache.structure) for cache in caches]
        task.caches = (ctypes.POINTER(c.Cache) * len(caches))(*pointers)
        task.tokens, task.sequences, task.threads = tokens, len(caches), torch.get_num_threads()
        task.starts, task.visible = ctypes.addressof(start_array), ctypes.addressof(mask_array)
        task.hidden, task.positions = hidden.data_ptr(), ctypes.addressof(position_array)
        self.call("forward", task)
        return hidden

    def repack(self, index: int, block: Any, changed: Collection[nn.Module]) -> None:
        """Repack the matrices of a block whose linears changed. No pass may run at the same time.

        Args:
            index: number of the block.
            block: module of the block.
            changed: changed linears.

        Raises:
            ValueError: the shape of a weight changed.
        """
        layer = self._layers[index]
        for name, (outputs, inputs, linears) in self._matrices(block).items():
            if any(linear in changed for linear in linears):
                old = c.Matrix.from_buffer_copy(getattr(layer, name.split()[0]))
                self._set(layer, name, self.matrix(outputs, inputs, *linears))
                self.layout.release_matrix(old)

    @contextmanager
    def borrowed_block(self, other: "NativeBlocks", index: int) -> Iterator[None]:
        """Context in which block `index` is replaced by that of another model with the same shapes.
        No pass of another thread may run at the same time."""
        original = c.Layer.from_buffer_copy(self._layers[index])
        self._layers[index] = other._layers[index]
        try:
            yield
        finally:
            self._layers[index] = original

    def _layer(self, block: Any) -> c.Layer:
        attention, s, layer = block.self_attn, self.structure, c.Layer()
        for name, (outputs, inputs, linears) in self._matrices(block).items():
            self._set(layer, name, self.matrix(outputs, inputs, *linears))
        layer.attention_norm = self.norm(block.input_layernorm, s.width)
        between: Any = getattr(block, "pre_feedforward_layernorm", None)
        if between is None:
            layer.mlp_norm = self.norm(block.post_attention_layernorm, s.width)
        else:  # four norms per block
            layer.mlp_norm = self.norm(between, s.width)
            layer.attention_out_norm = self.norm(block.post_attention_layernorm, s.width)
            layer.mlp_out_norm = self.norm(block.post_feedforward_layernorm, s.width)
        layer.query_norm, layer.key_norm = (
            self.norm(getattr(attention, name, None), s.head) for name in ("q_norm", "k_norm")
        )
        layer.window = window_of(attention)
        layer.rotary = self._types.index(attention.layer_type) if len(self._types) > 1 else 0
        return layer

    def _matrices(self, block: Any) -> dict[str, tuple[int, int, list[nn.Module]]]:
        """Map fields of a layer -> (outputs, inputs, linears). A key with two fields, separated by
        a space, stands for the halves of one matrix."""
        attention, mlp, s = block.self_attn, block.mlp, self.structure
        split = not hasattr(attention, "qkv_proj")
        names = ("q_proj", "k_proj", "v_proj") if split else ("qkv_proj",)
        rows, mixed = (s.heads + 2 * s.kv_heads) * s.head, s.heads * s.head
        matrices = {
            "qkv": (rows, s.width, [getattr(attention, name) for name in names]),
            "out": (s.width, mixed, [attention.o_proj]),
            "down": (s.width, s.inner, [mlp.down_proj]),
        }
        if not hasattr(mlp, "gate_proj"):
            return matrices | {"gate up": (2 * s.inner, s.width, [mlp.gate_up_proj])}
        gate, up = ((s.inner, s.width, [x]) for x in (mlp.gate_proj, mlp.up_proj))
        return matrices | {"gate": gate, "up": up}

    def _set(self, layer: c.Layer, name: str, matrix: c.Matrix) -> None:
        first, *second = name.split()
        half = matrix.outputs // (1 + len(second))
        for number, field in enumerate((first, *second)):
            setattr(layer, field, self.layout.rows(matrix, number * half, half))

    def matrix(self, outputs: int, inputs: int, *linears: nn.Module) -> c.Matrix:
        """Pack linears, stacked to a matrix [outputs, inputs]. Raises `ValueError` for other
        shapes."""
        matrix = self.layout.matrix(*linears)
        self.require((matrix.outputs, matrix.inputs), (outputs, inputs))
        return matrix

    def norm(self, norm: Any, size: int) -> int | None:
        """Return the address of the float32 weights of a norm; None without a norm."""
        if norm is None:
            return None
        self.require(norm.weight.shape, (size,))
        return self.layout.own((norm.weight.detach().float() + self._shift).contiguous())

    def require(self, shape: Sequence[int], expected: tuple[int, ...]) -> None:
        """Raise `ValueError` if the shape of a weight is not the one that the library will read."""
        if tuple(shape) != expected:
            raise ValueError(f"a weight has shape {[*shape]} instead of {[*expected]}")

    def _angles(self, positions: int) -> list[list[Tensor]]:
        """Cosines and sines [positions, rotated / 2] of the model's rotary embedding, for each type
        of layer."""
        ids, like = torch.arange(positions)[None], torch.empty(1, 1, dtype=torch.float32)
        with torch.no_grad():
            tables = [
                self._rotary(like, ids, *([] if layer_type is None else [layer_type]))
                for layer_type in self._types
            ]
        return [[x[0, :, : x.shape[-1] // 2].float().contiguous() for x in pair] for pair in tables]
