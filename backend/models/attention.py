"""Fast CPU attention for a few new tokens over a long key-value cache: the query heads that share a
key head are stacked as additional queries of it, so the cache is not copied, as transformers
does."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME, DEFAULT_ATTENTION = "slimscope_grouped", "sdpa"
MAX_NEW_TOKENS = 64  # new tokens; above it, copying the mask costs as much as copying the keys
UNSUPPORTED_ARGUMENTS = (
    "softcap",
    "position_bias",
    "s_aux",
)  # arguments of some models, not supported here


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
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
