"""Decoder blocks in the layout of `cpp/decoder.cpp`, and their cache."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.native import structures as c
from backend.native.compiler import NATIVE, instructions, library
from backend.native.weights import WeightLayout


def head_size(model: PreTrainedModel) -> int:
    """Width of an attention head."""
    config = model.config.get_text_config()
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class NativeCache:
    """Keys and values [layers, kv heads, capacity, head] of one sequence, in bfloat16.

    Attributes:
        capacity: maximum number of tokens, including a tree under verification.
    """

    def __init__(self, owner: NativeBlocks, capacity: int) -> None:
        self._owner, self.capacity = owner, capacity
        c_model = owner.structure
        shape = (c_model.layers, c_model.kv_heads, capacity, c_model.head)
        self._keys, self._values = torch.zeros(2, *shape, dtype=torch.bfloat16).unbind()
        self.structure = c.Cache(capacity, 0, self._keys.data_ptr(), self._values.data_ptr())

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return int(self.structure.length)

    def keep(self, start: int, chosen: Sequence[int]) -> None:
        """Of the rows from `start` on, keep those at `start + chosen` (ascending), in place."""
        rows = (ctypes.c_int32 * len(chosen))(*chosen)
        self._owner.call("keep", self.structure, start, rows, len(chosen))

    def rewind(self, length: int) -> None:
        """Drop all rows from `length` on."""
        self.structure.length = length

    def beginning(self, length: int, capacity: int) -> NativeCache:
        """A cache for `capacity` tokens that holds the first `length` rows of this one."""
        other = self._owner.new_cache(capacity)
        other._keys[:, :, :length] = self._keys[:, :, :length]
        other._values[:, :, :length] = self._values[:, :, :length]
        other.rewind(length)
        return other


class NativeBlocks:
    """Some blocks of a model, of hidden states in and hidden states out.

    Args:
        model: supported by the decoder (`model.unsupported`); its rotary positions are used.
        blocks: of it, or of its shapes.
        target: compiler flags that choose the instructions.
        rounded: whether weights that are not packed are rounded to 8 bits.

    Attributes:
        instructions: what the decoder was built for, such as AVX2.

    Raises:
        CompilerError: the decoder cannot be built here.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Iterable[nn.Module],
        target: tuple[str, ...] = NATIVE,
        rounded: bool = False,
    ) -> None:
        self._library = library(target)
        self.instructions = instructions(target)
        self.layout = WeightLayout(self._library, rounded)
        self._tabulating = threading.Lock()
        inner: Any = model.base_model
        self._rotary: nn.Module = inner.rotary_emb
        self._rows = 0
        config, layers = model.config.get_text_config(), [*map(self._layer, blocks)]
        self.width = config.hidden_size
        self.structure = c.Model(
            len(layers), self.width, config.num_attention_heads, config.num_key_value_heads,
            head_size(model), config.intermediate_size, config.rms_norm_eps, None,
            self.layout.keep((c.Layer * len(layers))(*layers)),
        )  # fmt: skip

    def call(self, function: str, *arguments: object) -> None:
        """Call a function of the library on these blocks."""
        passed = (ctypes.byref(x) if isinstance(x, ctypes.Structure) else x for x in arguments)
        getattr(self._library, function)(ctypes.byref(self.structure), *passed)

    def new_cache(self, capacity: int) -> NativeCache:
        """An empty cache for `capacity` tokens."""
        with self._tabulating:
            if capacity > self._rows:
                self._tabulate(max(capacity, 2 * self._rows))
        return NativeCache(self, capacity)

    def __call__(
        self,
        states: Tensor,
        cache: NativeCache,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Append n tokens to the cache: hidden states [n, width] -> [n, width] in float32.

        Args:
            positions: [n]; None: those that follow the cached ones.
            visible: [n, n] bool, which tokens of the pass each sees; None: those before it.
        """
        inputs = states.float().contiguous()
        return self._run(c.Pass(inputs=inputs.data_ptr()), len(states), [cache], positions, visible)

    def _run(
        self,
        task: c.Pass,
        tokens: int,
        caches: Sequence[NativeCache],
        positions: Tensor | None,
        visible: Tensor | None,
    ) -> Tensor:
        """Run a pass over as many tokens of each cache; see `__call__`."""
        each = tokens // len(caches)
        if positions is None:
            starts = torch.tensor([[cache.length] for cache in caches])
            positions = (starts + torch.arange(each)).flatten()
        fits = all(cache.length + each <= cache.capacity for cache in caches)
        if not fits or int(positions.max()) >= self._rows:
            raise ValueError(f"{each} more tokens do not fit into the cache")
        hidden, places = torch.empty(tokens, self.width), positions.long().contiguous()
        seen = None if visible is None else visible.to(torch.uint8).contiguous()
        pointers = (ctypes.POINTER(c.Cache) * len(caches))(
            *(ctypes.pointer(cache.structure) for cache in caches)
        )
        task.tokens, task.sequences, task.caches = tokens, len(caches), pointers
        task.threads, task.hidden = torch.get_num_threads(), hidden.data_ptr()
        task.positions = places.data_ptr()
        task.visible = None if seen is None else seen.data_ptr()
        self.call("forward", task)
        return hidden

    def _layer(self, block: Any) -> c.Layer:
        attention, mlp, layout = block.self_attn, block.mlp, self.layout
        norms = [
            None if norm is None else layout.floats(norm.weight)
            for norm in (
                block.input_layernorm, block.post_attention_layernorm,
                getattr(attention, "q_norm", None), getattr(attention, "k_norm", None),
            )
        ]  # fmt: skip
        return c.Layer(
            layout.matrix(attention.q_proj, attention.k_proj, attention.v_proj),
            *map(layout.matrix, (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
            *norms,
        )

    def _tabulate(self, positions: int) -> None:
        """Cosines and sines [positions, head / 2] of the model's own rotary embedding."""
        places = torch.arange(positions)[None]
        with torch.no_grad():
            both = self._rotary(torch.empty(1, 1, dtype=torch.float32), places)
        half = self.structure.head // 2
        tables = [x[0, :, :half].float().contiguous() for x in both]
        # the tables before are kept: a pass of another thread may be reading them
        self.structure.cosines, self.structure.sines = map(self.layout.own, tables)
        self._rows = positions
