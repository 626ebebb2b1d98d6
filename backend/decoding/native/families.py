"""Model families that the native decoder supports, and their differences."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

LANES = 16  # outputs per block of a matrix
FAMILIES = {  # model type -> class of its language model
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}  # `Activation` in `kernels/cpp/decoder.h`
LONG, FAR = "longrope", 10**9
FIXED_ROTARY = ("default", "linear", "llama3", "yarn", LONG)  # up to `stable_context`
PARTIAL = "phi3"  # the family for which a partial rotary embedding is supported


def unsupported(model: PreTrainedModel, dtype: torch.dtype | None = None) -> str:
    """Return the reason why the decoder does not support a model; "" if it does.

    Args:
        model: model to decode.
        dtype: dtype to which its weights will be rounded; None for their present dtype.
    """
    config = model.config.get_text_config()
    if config.model_type not in FAMILIES:
        return f"it decodes {', '.join(FAMILIES)} models, not {config.model_type}"
    if model.device.type != "cpu":
        return "it runs on the CPU only"
    if (dtype := dtype or model.dtype) != torch.bfloat16:
        return f"it computes in bfloat16, not {str(dtype).removeprefix('torch.')}"
    for rope in rotaries(config):
        if (kind := rope.get("rope_type", "default")) not in FIXED_ROTARY:
            return f"its rotary positions ({kind}) change with the length"
        if rope.get("partial_rotary_factor", 1.0) != 1.0 and config.model_type != PARTIAL:
            return "its rotary embedding covers only a part of each head"
    if (activation := activation_of(config)) not in ACTIVATIONS:
        return f"its activation is {activation}, not {' or '.join(ACTIVATIONS)}"
    if getattr(config, "use_bidirectional_attention", None):
        return "its attention is bidirectional"
    if head_size(config) % LANES or config.intermediate_size % LANES or config.hidden_size % LANES:
        return f"its widths are not multiples of {LANES}"
    return ""


def rotaries(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Return the parameters of the rotary embeddings: one for all layers, or one per layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [by_type for by_type in rope.values() if isinstance(by_type, dict)] or [rope]


def stable_context(config: PreTrainedConfig) -> int:
    """Return the number of positions for which rotary frequencies do not depend on the length.

    Beyond its original context, `longrope` uses other frequencies for every token, including cached
    ones.
    """
    limits = [
        r["original_max_position_embeddings"]
        for r in rotaries(config)
        if r.get("rope_type") == LONG
    ]
    return min(limits, default=FAR)


def head_size(config: PreTrainedConfig) -> int:
    """Return the size of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def activation_of(config: PreTrainedConfig) -> str:
    """Return the activation of the gate. If a Gemma config has both keys, the model uses
    `hidden_activation`."""
    return getattr(config, "hidden_activation", None) or config.hidden_act


def norm_shift(config: PreTrainedConfig) -> float:
    """Return the constant added to the weights of norms; Gemma computes (1 + w) x / rms(x)."""
    return 1.0 if config.model_type.startswith("gemma") else 0.0


def window_of(attention: Any) -> int:
    """Return the size of the attention window in tokens; 0 if it is unlimited."""
    config = attention.config
    return getattr(attention, "sliding_window", getattr(config, "sliding_window", None)) or 0


def attention_cap(attention: Any) -> float:
    """Return the soft cap of the attention scores; 0 without. Gemma 3 has the setting of Gemma 2
    but does not use it."""
    capped = attention.config.model_type == "gemma2"
    return (capped and attention.attn_logit_softcapping) or 0.0


def rotary_types(rotary: nn.Module) -> list[str | None]:
    """Return the layer types with separate rotary embeddings; [None] if all layers share one."""
    return getattr(rotary, "layer_types", None) or [None]


def embedding_scale(embedding: Any) -> float:
    """Return the factor of the embeddings: sqrt(width) for Gemma, rounded as in the model; else
    1."""
    scale = getattr(embedding, "embed_scale", 1.0)
    return float(torch.as_tensor(scale).to(embedding.weight.dtype))
