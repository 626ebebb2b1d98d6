"""Attention of a few new tokens over a long cache, on a CPU.

With grouped queries several query heads read one key head. transformers copies every cached key
and value to each of them when a mask is given, and torch is slow for a single token. Here the query
heads of a group stand behind each other as more queries of their one key head: the same products,
and the cache is read where it lies. All other passes are those of transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME, USUAL = "slimscope_grouped", "sdpa"
FEW = 64  # new tokens; with more of them copies of the mask cost what those of the keys would
UNKNOWN = ("softcap", "position_bias", "s_aux")  # what some models add to attention


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
    """Attention as transformers asks for it.

    Args:
        query: [b, H, n, w]; key, value: [b, h, m, w] with H a multiple of h.
        attention_mask: [b, 1, n, m] or None.

    Returns:
        [b, n, H, w], and no weights.
    """
    batch, heads, n, _ = query.shape
    shared, mask = heads // key.shape[1], attention_mask
    plain = not dropout and all(more.get(name) is None for name in UNKNOWN)
    fits = n == 1 if mask is None else n <= FEW and mask.shape[1] == 1
    if shared == 1 or not (plain and fits):
        given = (query, key, value, attention_mask, dropout, scaling)
        mixed: Tensor = sdpa_attention_forward(module, *given, **more)[0]
        return mixed, None
    rows = query.reshape(batch, -1, shared * n, query.shape[-1])  # heads of a group are neighbours
    mask = None if mask is None else mask.repeat(1, 1, shared, 1)
    mixed = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(batch, heads, n, -1).transpose(1, 2).contiguous(), None


def use_grouped(model: PreTrainedModel, device: torch.device) -> None:
    """Lets `model` attend so on a CPU, where it would use the usual kernel."""
    if device.type == "cpu" and model.config._attn_implementation == USUAL:
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
