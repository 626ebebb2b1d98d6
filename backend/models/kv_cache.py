"""A preallocated key-value cache for decoding in PyTorch, `[b, heads, capacity, head]` a layer: new
rows are written in place, and of a verified tree only the accepted path is kept. Layers with a
sliding window keep all tokens here, and a mask hides those before it.

Beside it, fast CPU attention for a few new tokens over a long cache: the query heads that share a
key head are stacked as additional queries of it, so the cache is not copied, as transformers does;
and greedy decoding with a model's own cache, which any model has.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from backend.errors import ModelError

GROUPED, DEFAULT_ATTENTION = "slimscope_grouped", "sdpa"
MAX_NEW_TOKENS = 64  # new tokens; above it, copying the mask costs as much as copying the keys
UNSUPPORTED_ARGUMENTS = (
    "softcap",
    "position_bias",
    "s_aux",
)  # arguments of some models, not supported here


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


class StackedLayer(LayerCache):
    """One layer of several caches, `[b, heads, capacity, head]`, each of which gets a row at its
    own `lengths` [b]; the rows up to the longest are attended to, under a mask."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        super().__init__(max(layer.capacity for layer in layers))
        first = layers[0].keys
        shape = len(layers), first.shape[1], self.capacity, first.shape[3]
        self.keys, self.values = first.new_zeros(shape), first.new_zeros(shape)  # all are finite
        for number, layer in enumerate(layers):
            for stacked, own in ((self.keys, layer.keys), (self.values, layer.values)):
                stacked[number, :, : layer.length] = own[0, :, : layer.length]
            layer.keys, layer.values = (x[number : number + 1] for x in (self.keys, self.values))
            layer.capacity = self.capacity
        self._sequences = torch.arange(len(layers), device=first.device)
        self.is_initialized = True

    def begin(self, lengths: Tensor) -> None:
        """Let the next row of each follow as many."""
        self._lengths, self.length = lengths, int(lengths.max())

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append a row `[b, heads, 1, head]` to each."""
        self.keys[self._sequences, :, self._lengths] = key_states[:, :, 0]
        self.values[self._sequences, :, self._lengths] = value_states[:, :, 0]
        self.length += 1
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class PreallocatedCache(Cache):
    """The cache of a whole model, accepted by transformers as `cache` or `past_key_values`.
    `capacity`: maximum number of tokens, including a tree under verification."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.rows = [LayerCache(capacity) for _ in range(layers)]
        self.seat: tuple[StackedCache, int] | None = None
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


class StackedCache(Cache):
    """Several caches of one sequence each, which become parts of this one, so that one pass appends
    a token to all; they go on to work alone."""

    def __init__(self, caches: Sequence[PreallocatedCache]) -> None:
        self.rows = [StackedLayer(x) for x in zip(*(cache.rows for cache in caches), strict=True)]
        super().__init__(layers=list(self.rows))
        self.seats = [(self, number) for number in range(len(caches))]
        for cache, seat in zip(caches, self.seats, strict=True):
            cache.seat = seat

    @classmethod
    def of(cls, caches: Sequence[PreallocatedCache], lengths: Tensor) -> "StackedCache":
        """The stack of these caches, which hold `lengths` [b] tokens; that of the last pass where
        it is of the same."""
        seats = [cache.seat for cache in caches]
        stack = seats[0][0] if seats[0] and seats == seats[0][0].seats else cls(caches)
        for layer in stack.rows:
            layer.begin(lengths)
        return stack


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention function with the interface of transformers. `query`: [b, H, n, w]; key, value: [b,
    h, m, w] with H a multiple of h. `attention_mask`: [b, 1, n, m] or None. Returns [b, n, H, w],
    and None instead of attention weights."""
    batch, heads, n, _ = query.shape
    shared, mask = heads // key.shape[1], attention_mask
    plain = not dropout and all(more.get(name) is None for name in UNSUPPORTED_ARGUMENTS)
    fits = n == 1 if mask is None else n <= MAX_NEW_TOKENS and mask.shape[1] == 1
    if shared == 1 or not (plain and fits):
        given = (query, key, value, attention_mask, dropout, scaling)
        mixed: Tensor = sdpa_attention_forward(module, *given, **more)[0]
        return mixed, None
    rows = query.reshape(batch, -1, shared * n, query.shape[-1])  # heads of a group are adjacent
    mask = None if mask is None else mask.repeat(1, 1, shared, 1)
    mixed = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(batch, heads, n, -1).transpose(1, 2).contiguous(), None


def use_grouped(model: PreTrainedModel, device: torch.device) -> None:
    """Use grouped attention in `model` if it runs on a CPU with the default kernel."""
    if device.type == "cpu" and model.config._attn_implementation == DEFAULT_ATTENTION:
        model.set_attn_implementation(GROUPED)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Sequence[int]) -> Iterator[int]:
    """Yield greedy tokens after the ids of a prompt, without end, with the model's own cache."""
    name, cache = cache_name(model), None
    given = torch.tensor([[*prompt]], device=model.device)
    while True:
        output = model(input_ids=given, use_cache=True, **{name: cache})
        cache = output[name]
        given = output.logits[:, -1:].argmax(-1)
        yield int(given)
