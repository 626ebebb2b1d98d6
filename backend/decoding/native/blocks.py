"""Decoder blocks in the layout of `cpp/decoder.cpp`, and their cache."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.decoding.native import structures as c
from backend.decoding.native.compiler import NATIVE, instructions, library
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

MOST_ROWS = 2**24  # of a cache


class NativeCache:
    """Keys and values [layers, kv heads, capacity, head] of one sequence, in bfloat16."""

    def __init__(self, owner: NativeBlocks, capacity: int) -> None:
        self.owner, self.capacity = owner, capacity
        c_model = owner.structure
        shape = (c_model.layers, c_model.kv_heads, capacity, c_model.head)
        self._keys, self._values = torch.zeros(2, *shape, dtype=torch.bfloat16).unbind()
        self.structure = c.Cache(capacity, 0, self._keys.data_ptr(), self._values.data_ptr())

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return int(self.structure.length)

    def keep(self, start: int, chosen: Sequence[int]) -> None:
        """Of the rows from `start` on, keep those at `start + chosen` (ascending), in place.

        Raises:
            ValueError: they are not ascending, or not all cached.
        """
        places = [-1, *chosen, self.length - start]
        if start < 0 or any(one >= other for one, other in pairwise(places)):
            raise ValueError(f"of {self.length} rows, not all of {start} + {[*chosen]} can be kept")
        rows = (ctypes.c_int32 * len(chosen))(*chosen)
        self.owner.call("slimscope_keep", self.structure, start, rows, len(chosen))

    def rewind(self, length: int) -> None:
        """Drop all rows from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"{self.length} rows are cached, not {length}")
        self.structure.length = length

    def beginning(self, length: int, capacity: int) -> NativeCache:
        """A cache for `capacity` tokens that holds the first `length` rows of this one."""
        if not 0 <= length <= min(self.length, capacity):
            raise ValueError(f"{length} of {self.length} rows do not fit into {capacity}")
        other = self.owner.new_cache(capacity)
        other._keys[:, :, :length] = self._keys[:, :, :length]
        other._values[:, :, :length] = self._values[:, :, :length]
        other.structure.length = length
        return other


class NativeBlocks:
    """Some blocks of a model, of hidden states in and hidden states out.

    Args:
        model: supported by the decoder (`families.unsupported`); its rotary positions are used.
        blocks: of it, or of its shapes.
        rounded: weights that are not packed are rounded to 8 bits.

    Raises:
        CompilerError: the decoder cannot be built here.
        ValueError: a weight has another shape than the config says.
    """

    def __init__(
        self, model: PreTrainedModel, blocks: Iterable[nn.Module],
        target: tuple[str, ...] = NATIVE, rounded: bool = False,
    ) -> None:  # fmt: skip
        self._library = library(target)
        self.instructions = instructions(target)
        self.layout = WeightLayout(self._library, rounded)
        self._tabulating = threading.Lock()
        inner: Any = model.base_model
        self._rotary: nn.Module = inner.rotary_emb
        self._rows = 0  # of the tables
        config = model.config.get_text_config()
        self.width = config.hidden_size
        self._stable, self._shift = stable_context(config), norm_shift(config)
        self._types = rotary_types(self._rotary)
        self.structure = c.Model(
            0, self.width, config.num_attention_heads, config.num_key_value_heads,
            head_size(config), config.intermediate_size, 2 * self._angles(1)[0][0].shape[1],
            ACTIVATIONS[activation_of(config)], config.rms_norm_eps, embedding_scale=1.0,
            logit_scale=1.0,
        )  # fmt: skip
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
        if getattr(self._library, function)(self.structure, *arguments):
            raise MemoryError("The native decoder ran out of memory or threads.")

    def new_cache(self, capacity: int) -> NativeCache:
        """An empty cache for `capacity` tokens."""
        if not 0 < capacity <= MOST_ROWS:
            raise ValueError(f"a cache cannot hold {capacity} tokens")
        with self._tabulating:
            if min(capacity, self._stable) > self._rows:
                self._tabulate(max(capacity, 2 * self._rows))
        return NativeCache(self, capacity)

    def __call__(
        self, states: Tensor, cache: NativeCache,
        positions: Tensor | None = None, visible: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Append n tokens to the cache: hidden states [n, width] -> [n, width] in float32.

        Args:
            positions: [n]; None: those that follow the cached ones.
            visible: [n, n] bool, which tokens of the pass each sees; None: those before it.
        """
        if states.dim() != 2 or states.shape[1] != self.width:
            raise ValueError(f"the states {[*states.shape]} are not {self.width} wide")
        inputs = states.float().contiguous()
        return self._run(c.Pass(inputs=inputs.data_ptr()), len(states), [cache], positions, visible)

    def _run(
        self, task: c.Pass, tokens: int, caches: Sequence[NativeCache],
        positions: Tensor | None, visible: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Run a pass over as many tokens of each cache; see `__call__`.

        Raises:
            ValueError: something is out of range; the library would read or write elsewhere.
        """
        each = tokens // len(caches) if caches else 0
        apart = len({*map(id, caches)}) == len(caches) and all(x.owner is self for x in caches)
        if not each or tokens != each * len(caches) or not apart:
            raise ValueError(f"{tokens} tokens cannot be appended to these {len(caches)} caches")
        if positions is None:
            starts = torch.tensor([[cache.length] for cache in caches])
            positions = (starts + torch.arange(each)).flatten()
        fits = all(cache.length + each <= cache.capacity for cache in caches)
        if not fits or positions.shape != (tokens,) or int(positions.max()) >= self._rows:
            raise ValueError(f"{each} more tokens do not fit into the cache")
        if int(positions.min()) < 0:
            raise ValueError("a position is negative")
        if visible is not None:
            alone = len(caches) == 1 and visible.shape == (tokens, tokens)
            if not alone or not visible.diagonal().all():
                raise ValueError("of a tree, every token sees itself and some of the others")
            visible = visible.to(torch.uint8).contiguous()
            task.visible = visible.data_ptr()
        hidden, places = torch.empty(tokens, self.width), positions.long().contiguous()
        pointers = [ctypes.pointer(cache.structure) for cache in caches]
        task.caches = (ctypes.POINTER(c.Cache) * len(caches))(*pointers)
        task.tokens, task.sequences, task.threads = tokens, len(caches), torch.get_num_threads()
        task.hidden, task.positions = hidden.data_ptr(), places.data_ptr()
        self.call("slimscope_forward", task)
        return hidden

    def _layer(self, block: Any) -> c.Layer:
        attention, mlp, s = block.self_attn, block.mlp, self.structure
        mixed, rows = s.heads * s.head, (s.heads + 2 * s.kv_heads) * s.head
        split = not hasattr(attention, "qkv_proj")
        names = ("q_proj", "k_proj", "v_proj") if split else ("qkv_proj",)
        qkv = self.matrix(rows, s.width, *(getattr(attention, name) for name in names))
        layer = c.Layer(qkv, self.matrix(s.width, mixed, attention.o_proj))
        layer.gate, layer.up = self._gate_and_up(mlp)
        layer.down = self.matrix(s.width, s.inner, mlp.down_proj)
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

    def _gate_and_up(self, mlp: Any) -> tuple[c.Matrix, c.Matrix]:
        """Two matrices, or the halves of one."""
        inner, width = self.structure.inner, self.width
        if hasattr(mlp, "gate_proj"):
            return self.matrix(inner, width, mlp.gate_proj), self.matrix(inner, width, mlp.up_proj)
        both = self.matrix(2 * inner, width, mlp.gate_up_proj)
        return self.layout.rows(both, 0, inner), self.layout.rows(both, inner, inner)

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

    def _tabulate(self, positions: int) -> None:
        """Fill the tables for as many positions, or up to that from which they would change."""
        positions = min(positions, self._stable)
        half, s = self.structure.rotated // 2, self.structure
        for kind, tables in enumerate(self._angles(positions)):
            for table in tables:
                self.require(table.shape, (positions, half))
            # the tables before are kept: a pass of another thread may be reading them
            s.cosines[kind], s.sines[kind] = map(self.layout.own, tables)
        self._rows = positions

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
