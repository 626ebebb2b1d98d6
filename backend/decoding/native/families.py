"""What the native decoder knows of families: how they differ, and what it does not run."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

LANES = 16  # outputs of a block
FAMILIES = {  # model type -> the class of its language models
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}  # as `kernels/cpp/decoder.h` numbers them
LONG, FAR = "longrope", 10**9
FIXED_ROTARY = ("default", "linear", "llama3", "yarn", LONG)  # up to `stable_context`
PARTIAL = "phi3"  # rotates a part of each head, where its config says so


def unsupported(model: PreTrainedModel, dtype: torch.dtype | None = None) -> str:
    """Reason for which the decoder does not run this model; "" if it does. `dtype`: that its
    weights are going to be rounded to, if they are."""
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
            return "it rotates a part of each head only"
    if (activation := activation_of(config)) not in ACTIVATIONS:
        return f"its activation is {activation}, not {' or '.join(ACTIVATIONS)}"
    if getattr(config, "use_bidirectional_attention", None):
        return "its tokens also see those after them"
    if head_size(config) % LANES or config.intermediate_size % LANES or config.hidden_size % LANES:
        return f"its widths are not multiples of {LANES}"
    return ""


def rotaries(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The settings of rotary positions: one, or those of each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [each for each in rope.values() if isinstance(each, dict)] or [rope]


def stable_context(config: PreTrainedConfig) -> int:
    """Maximum position up to which rotary frequencies do not depend on the length of a pass: beyond
    its original context `longrope` uses other frequencies for every token, cached ones included."""
    limits = [
        r["original_max_position_embeddings"]
        for r in rotaries(config)
        if r.get("rope_type") == LONG
    ]
    return min(limits, default=FAR)


def head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def activation_of(config: PreTrainedConfig) -> str:
    """The function of the gate; Gemma's second key is the one it uses."""
    return getattr(config, "hidden_activation", None) or config.hidden_act


def norm_shift(config: PreTrainedConfig) -> float:
    """What is added to the weights of norms: Gemma's are (1 + w) x / rms(x)."""
    return 1.0 if config.model_type.startswith("gemma") else 0.0


def window_of(attention: Any) -> int:
    """How many of the last tokens an attention layer sees; 0: all."""
    config = attention.config
    return getattr(attention, "sliding_window", getattr(config, "sliding_window", None)) or 0


def attention_cap(attention: Any) -> float:
    """Of the scores; Gemma 3 has the setting of Gemma 2, and does not use it."""
    capped = attention.config.model_type == "gemma2"
    return (capped and attention.attn_logit_softcapping) or 0.0


def rotary_types(rotary: nn.Module) -> list[str | None]:
    """The types of layers that have rotary positions of their own; [None]: all have the same."""
    return getattr(rotary, "layer_types", None) or [None]


def embedding_scale(embedding: Any) -> float:
    """Of Gemma's embeddings, sqrt(width), rounded as the model rounds it; else 1."""
    scale = getattr(embedding, "embed_scale", 1.0)
    return float(torch.as_tensor(scale).to(embedding.weight.dtype))
