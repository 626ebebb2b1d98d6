"""Key-value cache, CPU attention and greedy decoding in PyTorch.

The cache is preallocated, `[b, heads, capacity, head]` per layer. New rows are written in place,
and only the accepted path of a verified draft tree is kept. Layers with a sliding window keep all
tokens, and a mask hides those before the window.

Grouped attention is fast on a CPU for a few new tokens over a long cache: query heads that share a
key head are stacked as additional queries of that head. transformers copies the cache instead.

Greedy decoding uses a model's own cache and works with any model.
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
MAX_NEW_TOKENS = 64  # with more, copying the mask costs as much as copying the keys
# arguments of some models that grouped attention does not support
UNSUPPORTED_ARGUMENTS = ("softcap", "position_bias", "s_aux")


def cache_name(model: PreTrainedModel) -> str:
    """The name of the cache argument of `model.forward`, which transformers 5.24 changed."""
    arguments = inspect.signature(model.forward).parameters
    return "cache" if "cache" in arguments else "past_key_values"


def sliding_window(model: PreTrainedModel) -> int | None:
    """The smallest sliding window in tokens; None if the model has no layers with a window. Raises
    ModelError: a layer caches something other than keys and values of every token."""
    windows: list[int] = []
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        elif type(layer) is not DynamicLayer:
            raise ModelError(
                f"{type(model).__name__} cannot be decoded.",
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
        """Append n rows `[b, heads, n, head]`; return views of all rows in use."""
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
    """One layer of several caches, `[b, heads, capacity, head]`. New rows are written after each
    cache's last row; a mask hides the unused rows of shorter caches."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        super().__init__(max(layer.capacity for layer in layers))
        first = layers[0].keys
        shape = len(layers), first.shape[1], self.capacity, first.shape[3]
        # zeros, because masked rows must be finite
        self.keys, self.values = first.new_zeros(shape), first.new_zeros(shape)
        for number, layer in enumerate(layers):
            for stacked, single in ((self.keys, layer.keys), (self.values, layer.values)):
                stacked[number, :, : layer.length] = single[0, :, : layer.length]
            layer.keys, layer.values = (x[number : number + 1] for x in (self.keys, self.values))
            layer.capacity = self.capacity
        self._sequences = torch.arange(len(layers), device=first.device)
        self.is_initialized = True

    def begin(self, lengths: Tensor) -> None:
        """Set the number of rows of each cache, [b], before the next row is appended."""
        self._lengths, self.length = lengths, int(lengths.max())

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append one row to each cache, `[b, heads, 1, head]`; return the rows in use."""
        self.keys[self._sequences, :, self._lengths] = key_states[:, :, 0]
        self.values[self._sequences, :, self._lengths] = value_states[:, :, 0]
        self.length += 1
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class PreallocatedCache(Cache):
    """The cache of all layers, accepted by transformers as `cache` or `past_key_values`.

    Args:
        layers: number of layers.
        capacity: maximum number of tokens, including a draft tree under verification.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.rows = [LayerCache(capacity) for _ in range(layers)]
        self.stack_position: tuple[StackedCache, int] | None = None
        super().__init__(layers=list(self.rows))

    @property
    def capacity(self) -> int:
        """Maximum number of tokens."""
        return self.rows[0].capacity

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return self.rows[0].length

    def keep(self, start: int, accepted: Sequence[int]) -> None:
        """Drop all rows from `start` on, in place, except `start + accepted` (ascending)."""
        count = len(accepted)
        if accepted[-1] != count - 1:  # else they are already in place
            indices = torch.tensor(accepted, device=self.rows[0].keys.device) + start
            for layer in self.rows:
                for tensor in (layer.keys, layer.values):
                    tensor[:, :, start : start + count] = tensor.index_select(2, indices)
        self.rewind(start + count)

    def rewind(self, length: int) -> None:
        """Drop all rows from `length` on."""
        for layer in self.rows:
            layer.length = length


class StackedCache(Cache):
    """Caches of several sequences, combined so that one forward pass appends a token to each.

    The given caches become views of this one, and can still be used alone."""

    def __init__(self, caches: Sequence[PreallocatedCache]) -> None:
        self.rows = [StackedLayer(x) for x in zip(*(cache.rows for cache in caches), strict=True)]
        super().__init__(layers=list(self.rows))
        self.positions = [(self, number) for number in range(len(caches))]
        for cache, position in zip(caches, self.positions, strict=True):
            cache.stack_position = position

    @classmethod
    def of(cls, caches: Sequence[PreallocatedCache], lengths: Tensor) -> "StackedCache":
        """Stack caches that contain `lengths` [b] tokens. Reuses the stack of the previous pass if
        it combines the same caches."""
        positions = [cache.stack_position for cache in caches]
        first = positions[0]
        stack = first[0] if first and positions == first[0].positions else cls(caches)
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
    """Attention function with the interface of transformers.

    Falls back to the SDPA attention of transformers for unsupported arguments or many new tokens.

    Args:
        module: attention module, for the fallback.
        query: [b, H, n, w].
        key: [b, h, m, w], with H a multiple of h.
        value: [b, h, m, w].
        attention_mask: [b, 1, n, m] or None.
        dropout: dropout probability, for the fallback.
        scaling: factor of the scores; None: 1 / sqrt(w).
        **more: further arguments of transformers.

    Returns:
        The outputs [b, n, H, w], and None instead of attention weights.
    """
    batch, heads, n, _ = query.shape
    group, mask = heads // key.shape[1], attention_mask
    is_supported = not dropout and all(more.get(name) is None for name in UNSUPPORTED_ARGUMENTS)
    is_small = n == 1 if mask is None else n <= MAX_NEW_TOKENS and mask.shape[1] == 1
    if group == 1 or not (is_supported and is_small):
        arguments = (query, key, value, attention_mask, dropout, scaling)
        output: Tensor = sdpa_attention_forward(module, *arguments, **more)[0]
        return output, None
    queries = query.reshape(batch, -1, group * n, query.shape[-1])  # heads of a group are adjacent
    mask = None if mask is None else mask.repeat(1, 1, group, 1)
    output = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(batch, heads, n, -1).transpose(1, 2).contiguous(), None


def use_grouped(model: PreTrainedModel, device: torch.device) -> None:
    """Use grouped attention in `model` if it runs on a CPU with the default kernel."""
    if device.type == "cpu" and model.config._attn_implementation == DEFAULT_ATTENTION:
        model.set_attn_implementation(GROUPED)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Sequence[int]) -> Iterator[int]:
    """Yield greedy tokens after the ids of a prompt, endlessly, using the model's own cache."""
    name, cache = cache_name(model), None
    input_ids = torch.tensor([[*prompt]], device=model.device)
    while True:
        output = model(input_ids=input_ids, use_cache=True, **{name: cache})
        cache = output[name]
        input_ids = output.logits[:, -1:].argmax(-1)
        yield int(input_ids)
