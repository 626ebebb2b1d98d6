"""A preallocated key-value cache for the decoding loops, `[b, heads, capacity, head]` a layer: new
rows are written in place, and of a verified tree only the accepted path is kept. Layers with a
sliding window keep all tokens here, and a mask hides those before it."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from backend.errors import ModelError


def cache_name(model: PreTrainedModel) -> str:
    """The argument name of the key-value cache: transformers 5.24 changed it."""
    arguments = inspect.signature(model.forward).parameters
    return "cache" if "cache" in arguments else "past_key_values"


def sliding_window(model: PreTrainedModel) -> int | None:
    """The number of tokens that layers with a sliding window attend to; None: there are none.
    Raises ModelError: a layer caches something other than keys and values of every token."""
    windows: list[int] = []
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        elif type(layer) is not DynamicLayer:
            raise ModelError(
                f"{type(model).__name__} cannot be decoded here.",
                f"It has a cache layer of type {type(layer).__name__}, which does not support "
                "selecting rows after they are written.",
                "Choose a model with attention to tokens in every layer.",
                field="model",
            )
    return min(windows, default=None)


class LayerCache(CacheLayerMixin):
    """Keys and values of one layer, `[b, heads, capacity, head]`, the first `length` in use."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (
            new.new_empty(*new.shape[:2], self.capacity, new.shape[3])
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append n rows `[b, heads, n, head]`; return all rows in use, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class PreallocatedCache(Cache):
    """The cache of a whole model, accepted by transformers as `cache` or `past_key_values`.
    `capacity`: maximum number of tokens, including a tree under verification."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.rows = [LayerCache(capacity) for _ in range(layers)]
        super().__init__(layers=list(self.rows))

    @property
    def capacity(self) -> int:
        """Maximum number of tokens."""
        return self.rows[0].capacity

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return self.rows[0].length

    def keep(self, start: int, chosen: Sequence[int]) -> None:
        """Of the rows from `start` on, keep those at `start + chosen` (ascending), in place."""
        count = len(chosen)
        if chosen[-1] != count - 1:  # else they are already in place
            places = torch.tensor(chosen, device=self.rows[0].keys.device) + start
            for layer in self.rows:
                for tensor in (layer.keys, layer.values):
                    tensor[:, :, start : start + count] = tensor.index_select(2, places)
        self.rewind(start + count)

    def rewind(self, length: int) -> None:
        """Drop all rows from `length` on."""
        for layer in self.rows:
            layer.length = length

    def select(self, sequences: Tensor) -> None:
        """Keep only these sequences [n] of the batch."""
        for layer in self.rows:
            layer.keys = layer.keys.index_select(0, sequences)
            layer.values = layer.values.index_select(0, sequences)
