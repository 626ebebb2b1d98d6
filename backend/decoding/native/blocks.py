"""Decoder blocks in the layout of `kernels/cpp/decoder.h`, and passes through them."""

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

MOST_ROWS = 2**24  # of a cache


class NativeBlocks:
    """Some blocks of a model, of hidden states in and hidden states out. Raises CompilerError: the
    decoder cannot be built here; ValueError: a weight has another shape than the config says.

    Args:
        model: supported by the decoder (`families.unsupported`); its rotary positions are used.
        blocks: of it, or of its shapes.
        instructions: kernels that compute the passes; None: the best.
        rounded: weights that are not packed are rounded to 8 bits.
        sparse: zeros are left out where that pays for a few tokens; it does not for many.
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
        self._rows = 0  # of the tables
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
            raise ValueError(f"{s.rotated} of {s.head} values of a head are rotated")
        if any(size <= 0 or size % LANES for size in (s.width, s.head, s.inner)):
            raise ValueError(f"the widths are not multiples of {LANES}")
        if s.heads <= 0 or s.kv_heads <= 0 or s.heads % s.kv_heads:
            raise ValueError(f"{s.heads} heads do not share {s.kv_heads} key heads")
        blocks = [*blocks]
        attention: Any = blocks[0].self_attn
        s.attention_scale, s.attention_cap = attention.scaling, attention_cap(attention)
        layers = [*map(self._layer, blocks)]
        self._layers = (c.Layer * len(layers))(*layers)
        self.structure.layers, self.structure.layer = len(layers), self._layers

    def call(self, function: str, *arguments: object) -> None:
        """Call a function on these blocks; `MemoryError`: it ran out of memory or threads."""
        c.check(getattr(self._kernels, function)(self.structure, *arguments))

    def new_blocks(self) -> CacheBlocks:
        """Counts the blocks of some caches."""
        s = self.structure
        return CacheBlocks(2 * s.layers * s.kv_heads * s.head)

    def new_cache(
        self, capacity: int, blocks: CacheBlocks | None = None, held: Sequence[CacheBlock] = ()
    ) -> NativeCache:
        """A cache for `capacity` tokens, which begins with those that fill the blocks `held`;
        `blocks`: counts those it adds."""
        if not 0 < capacity <= MOST_ROWS or len(held) * c.BLOCK > capacity:
            raise ValueError(f"a cache cannot hold {capacity} tokens")
        with self._tabulating:
            if min(capacity, self._stable) > self._rows:
                # up to the position from which the tables would change
                positions, s = min(max(capacity, 2 * self._rows), self._stable), self.structure
                for kind, tables in enumerate(self._angles(positions)):
                    for table in tables:
                        self.require(table.shape, (positions, s.rotated // 2))
                    # the tables before are kept: a pass of another thread may be reading them
                    s.cosines[kind], s.sines[kind] = map(self.layout.own, tables)
                self._rows = positions
        blocks = blocks or self.new_blocks()
        return NativeCache(self.call, blocks, capacity, held, len(held) * c.BLOCK)

    def __call__(
        self,
        states: Tensor,
        cache: NativeCache,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Append n tokens to the cache: hidden states [n, width] -> [n, width] in float32.
        `positions`: [n]; None: those that follow the cached ones. `visible`: [n, n] bool, which
        tokens of the pass each sees; None: those before it."""
        if states.dim() != 2 or states.shape[1] != self.width:
            raise ValueError(f"the states {[*states.shape]} are not {self.width} wide")
        mask = None
        if visible is not None:
            if visible.shape != (len(states), len(states)) or not visible.diagonal().all():
                raise ValueError("of a tree, every token sees itself and some of the others")
            mask = visible.to(torch.uint8).contiguous()
        inputs = states.float().contiguous()
        places = range(cache.length, cache.length + len(states))
        return self._run(
            c.Pass(inputs=inputs.data_ptr()),
            [len(states)],
            [cache],
            places if positions is None else positions.tolist(),
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
        """Run a pass that appends `lengths` tokens to the caches, each with the mask of its tree in
        bytes; see `__call__`. Raises ValueError: something is out of range; the library would read
        or write elsewhere."""
        tokens, apart = sum(lengths), len({*map(id, caches)}) == len(caches)
        if not (len(lengths) == len(caches) == len(masks)) or min(lengths, default=0) < 1:
            raise ValueError(f"{[*lengths]} tokens cannot be appended to {len(caches)} caches")
        if not apart or any(cache.call != self.call for cache in caches):
            raise ValueError("a cache is another model's, or twice in the pass")
        if len(positions) != tokens or min(positions) < 0 or max(positions) >= self._rows:
            raise ValueError(f"the positions {[*positions]} do not fit the pass or the cache")
        for length, cache in zip(lengths, caches, strict=True):
            cache.make_room(length)
        # its type is named: while another thread builds a model, the default is of that one
        hidden = torch.empty(tokens, self.width, dtype=torch.float32)
        places, starts = (c_int64 * tokens)(*positions), [*accumulate(lengths, initial=0)]
        begins = (c_int32 * len(starts))(*starts)
        addresses = (None if mask is None else mask.data_ptr() for mask in masks)
        shown = (ctypes.c_void_p * len(masks))(*addresses)
        pointers = [ctypes.pointer(cache.structure) for cache in caches]
        task.caches = (ctypes.POINTER(c.Cache) * len(caches))(*pointers)
        task.tokens, task.sequences, task.threads = tokens, len(caches), torch.get_num_threads()
        task.starts, task.visible = ctypes.addressof(begins), ctypes.addressof(shown)
        task.hidden, task.positions = hidden.data_ptr(), ctypes.addressof(places)
        self.call("forward", task)
        return hidden

    def relay(self, index: int, block: Any, changed: Collection[nn.Module]) -> None:
        """Lay out anew the matrices of block number `index` that hold one of the `changed` linears;
        no pass may run meanwhile. Raises ValueError: a weight has another shape than before."""
        layer = self._layers[index]
        for name, (outputs, inputs, linears) in self._matrices(block).items():
            if any(linear in changed for linear in linears):
                old = c.Matrix.from_buffer_copy(getattr(layer, name.split()[0]))
                self._set(layer, name, self.matrix(outputs, inputs, *linears))
                self.layout.release_matrix(old)

    @contextmanager
    def borrowing(self, other: "NativeBlocks", index: int) -> Iterator[None]:
        """With block number `index` of another model of the same shapes for its own; no pass of
        another thread may run meanwhile."""
        own = c.Layer.from_buffer_copy(self._layers[index])
        self._layers[index] = other._layers[index]
        try:
            yield
        finally:
            self._layers[index] = own

    def _layer(self, block: Any) -> c.Layer:
        attention, s, layer = block.self_attn, self.structure, c.Layer()
        for name, (outputs, inputs, linears) in self._matrices(block).items():
            self._set(layer, name, self.matrix(outputs, inputs, *linears))
        layer.attention_norm = self.norm(block.input_layernorm, s.width)
        between: Any = getattr(block, "pre_feedforward_layernorm", None)
        if between is None:
            layer.mlp_norm = self.norm(block.post_attention_layernorm, s.width)
        else:  # four norms a block
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
        """Field of a layer, or two that are halves of one matrix -> outputs, inputs, linears."""
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
        """Linears one below the other, [outputs, inputs] together."""
        matrix = self.layout.matrix(*linears)
        self.require((matrix.outputs, matrix.inputs), (outputs, inputs))
        return matrix

    def norm(self, norm: Any, size: int) -> int | None:
        """Address of the weights of a norm."""
        if norm is None:
            return None
        self.require(norm.weight.shape, (size,))
        return self.layout.own((norm.weight.detach().float() + self._shift).contiguous())

    def require(self, found: Sequence[int], expected: tuple[int, ...]) -> None:
        """Raise `ValueError` for weights of another shape than the library will read."""
        if tuple(found) != expected:
            raise ValueError(f"a weight is {[*found]}, the config says {[*expected]}")

    def _angles(self, positions: int) -> list[list[Tensor]]:
        """Cosines and sines [positions, rotated / 2] of the model's own rotary embedding, of each
        of its types."""
        places, like = torch.arange(positions)[None], torch.empty(1, 1, dtype=torch.float32)
        with torch.no_grad():
            found = [
                self._rotary(like, places, *([] if kind is None else [kind]))
                for kind in self._types
            ]
        return [[x[0, :, : x.shape[-1] // 2].float().contiguous() for x in both] for both in found]
