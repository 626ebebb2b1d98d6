"""Architectures that can be written as GGUF: sizes, row order, and header keys. Does not import
torch.

Keys follow llama.cpp's converter and loader (conversion/, src/models/). llama.cpp rotates
neighboring values of a head, transformers its two halves, so for `llama` the rows of the query and
key projections are reordered. llama.cpp adds nothing to the weights of norms, so those of Gemma are
stored as 1 + w. The scaled frequencies of Llama 3.1 and Phi-3 are stored as tensors of divisors:

    theta_i = base^(-2 i / rotated) / factor_i
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.errors import ConfigError
from backend.models.sources.gguf_header import DIVIDED_SCALE, PERIODS

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
}
# True if llama.cpp normalizes the weights of the chosen experts
NORMALIZED = {"qwen2moe": False, "qwen3moe": True, "olmoe": False}
GEMMA = ("gemma", "gemma2", "gemma3")
SCALINGS = {"llama": ("default", "linear", "llama3"), "phi3": ("default", "longrope")}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class GGUFArchitecture:
    """Sizes of a model, with the names of GGUF.

    Attributes:
        name: name of the architecture.
        blocks: number of decoder blocks.
        heads: number of attention heads.
        key_heads: number of key-value heads.
        vocabulary: number of tokens.
        tied: True if the head shares the weights of the embedding.
        experts: experts per block; 0 for a model without experts.
        keys: header keys without the name of the architecture, with their values.
        factors: additional tensors with divisors of rotary frequencies.
    """

    name: str
    blocks: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool
    experts: int = 0
    keys: Mapping[str, int | float | str] = field(default_factory=dict)
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, int]:
        """Module suffix -> heads, for the projections with reordered rows."""
        if self.name != "llama":
            return {}
        return {"self_attn.q_proj": self.heads, "self_attn.k_proj": self.key_heads}

    @property
    def norm_shift(self) -> float:
        """Number added to the weights of norms."""
        return 1.0 if self.name in GEMMA else 0.0


def architecture_of(config: Mapping[str, Any]) -> GGUFArchitecture:
    """Return the architecture of the model with this config.json.

    Raises:
        ConfigError: the model cannot be written as GGUF, or llama.cpp would compute other results.
    """
    model_type = str(config.get("model_type"))
    if model_type not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise _refused(f"Its architecture is {model_type}; supported are {supported}.")
    name, ropes = ARCHITECTURES[model_type], _ropes(config)
    for obstacle in _obstacles(name, config, ropes):
        raise _refused(obstacle)
    rope, heads = ropes[GLOBAL], config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    rotated = int(head_size * partial) if name == "phi3" else head_size
    return GGUFArchitecture(
        name=name,
        blocks=config["num_hidden_layers"],
        heads=heads,
        key_heads=key_heads,
        vocabulary=config["vocab_size"],
        tied=_tied(config),
        experts=_experts(config),
        keys={
            "context_length": config["max_position_embeddings"],
            "embedding_length": config["hidden_size"],
            "block_count": config["num_hidden_layers"],
            "feed_forward_length": config["intermediate_size"],
            "attention.head_count": heads,
            "attention.head_count_kv": key_heads,
            "attention.key_length": head_size,
            "attention.value_length": head_size,
            "rope.dimension_count": rotated,
            "rope.freq_base": rope["rope_theta"],
            "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "vocab_size": config["vocab_size"],
            **dict(_keys(name, config, ropes)),
        },
        factors=_factors(config, rope, rotated),
    )


def _ropes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters of rotary positions, including type and base, of layers without
    (`GLOBAL`) and with (`LOCAL`) a sliding window."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = float(config.get("rope_theta") or 10000.0)
    if GLOBAL in parameters:
        ropes = {layers: dict(parameters.get(layers) or {}) for layers in (GLOBAL, LOCAL)}
    else:
        ropes = {GLOBAL: dict(parameters), LOCAL: dict(parameters)}
        if config["model_type"] == "gemma3_text":
            ropes[LOCAL] = {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
            base = float(config.get("rope_theta") or 1e6)
    for rope in ropes.values():
        rope["rope_theta"] = float(rope.get("rope_theta") or base)
        rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return ropes


def _obstacles(
    name: str, config: Mapping[str, Any], ropes: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield the reasons why llama.cpp would compute other results."""
    scaling, local = (ropes[layers]["rope_type"] for layers in (GLOBAL, LOCAL))
    if scaling not in SCALINGS.get(name, ("default", "linear")) or (
        name == "gemma3" and local != "default"
    ):
        yield f"It scales its rotary positions ({scaling if scaling != 'default' else local})."
    if config.get("mlp_bias"):
        yield "Its feed-forward layers have biases."
    expected = "gelu_pytorch_tanh" if name in GEMMA else "silu"
    used = str(config.get("hidden_activation") or config.get("hidden_act") or expected)
    if used != expected and (name, used) != ("gemma", "gelu"):  # old name of the same activation
        yield f"Its activation is {used}, but llama.cpp uses {expected} for {name}."
    yield from _window_obstacles(name, config)
    yield from _mixture_obstacles(name, config)
    if name in GEMMA:
        yield from _gemma_obstacles(name, config)
    width = config["num_attention_heads"] * (config.get("head_dim") or 0)
    if name == "phi3" and width not in (0, config["hidden_size"]):
        yield "The sizes of its heads do not add up to its hidden size."


def _window_obstacles(name: str, config: Mapping[str, Any]) -> Iterator[str]:
    if period := PERIODS.get(name):
        number = config["num_hidden_layers"]
        expected = [LOCAL if (n + 1) % period else GLOBAL for n in range(number)]
        pattern = config.get("sliding_window_pattern", period)
        if (config.get("layer_types") or expected) != expected or pattern != period:
            yield f"llama.cpp expects a layer without a sliding window every {period} layers."
        return
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", config["model_type"] in ("mistral", "mixtral", "phi3"))
    short = used and window and window < config["max_position_embeddings"]
    if short or LOCAL in (config.get("layer_types") or ()):
        yield "Some of its layers attend only to a sliding window."


def _mixture_obstacles(name: str, config: Mapping[str, Any]) -> Iterator[str]:
    normalized = NORMALIZED.get(name)
    if normalized is not None and bool(config.get("norm_topk_prob")) != normalized:
        verb = "normalizes" if normalized else "does not normalize"
        yield f"llama.cpp {verb} the weights of the chosen experts."
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        yield "Some of its layers have no experts."
    if config.get("clip_qkv"):
        yield "It clips queries, keys and values."
    if name in ("qwen2moe", "olmoe") and _tied(config):
        yield "Its head shares the weights of the embedding, which llama.cpp does not support."
    heads = config["num_attention_heads"]
    if name == "olmoe" and (config.get("num_key_value_heads") or heads) != heads:
        yield "Its heads share keys and values, which llama.cpp does not support."
    expected = name == "qwen2moe"
    biases = config.get("qkv_bias", True) if expected else config.get("attention_bias", False)
    if name in ("qwen3", *NORMALIZED) and bool(biases) != expected:
        verb = "expects" if expected else "does not support"
        yield f"llama.cpp {verb} biases in its attention."


def _experts(config: Mapping[str, Any]) -> int:
    return int(config.get("num_local_experts") or config.get("num_experts") or 0)


def _gemma_obstacles(name: str, config: Mapping[str, Any]) -> Iterator[str]:
    head, caps = config["head_dim"], ("attn_logit_softcapping", "final_logit_softcapping")
    missing = [cap for cap in caps if not config.get(cap)]
    if name == "gemma2" and missing:
        yield f"llama.cpp caps its logits, but its config has no {missing[0]}."
    if name == "gemma3" and len(missing) < len(caps):
        yield "It caps logits, but llama.cpp's Gemma 3 does not."
    if name != "gemma":
        heads = config["num_attention_heads"]
        divided = config["num_hidden_layers"] == DIVIDED_SCALE[name]
        scale = config["hidden_size"] // heads if divided else head
        if config.get("query_pre_attn_scalar", 256) != scale:
            yield f"Its queries are not divided by the root of {scale}."
    if config.get("attention_bias"):
        yield "Its attention has biases."
    if config.get("use_bidirectional_attention"):
        yield "Its attention is bidirectional."
    if name != "gemma3" and not _tied(config):
        yield "Its head is not its embedding."


def _tied(config: Mapping[str, Any]) -> bool:
    default = config["model_type"].startswith("gemma")
    return bool(config.get("tie_word_embeddings", default))


def _keys(
    name: str, config: Mapping[str, Any], ropes: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, int | float | str]]:
    """Yield the header keys of single architectures and of scaled positions."""
    rope = ropes[GLOBAL]
    if rope["rope_type"] == "linear":
        yield from (("rope.scaling.type", "linear"), ("rope.scaling.factor", float(rope["factor"])))
    if experts := _experts(config):
        yield from (("expert_count", experts), ("expert_used_count", config["num_experts_per_tok"]))
    if name in ("qwen2moe", "qwen3moe"):
        yield "expert_feed_forward_length", config["moe_intermediate_size"]
    if name == "qwen2moe":
        yield "expert_shared_feed_forward_length", config["shared_expert_intermediate_size"]
    if name in PERIODS:
        yield "attention.sliding_window", config["sliding_window"]
    if name == "gemma2":
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            yield cap, float(config[cap])
    if name == "gemma3":
        yield "rope.freq_base_swa", ropes[LOCAL]["rope_theta"]
    if name == "phi3":
        yield "attention.sliding_window", config.get("sliding_window") or 0
        yield "rope.scaling.original_context_length", _original_context(config, rope)
        if rope["rope_type"] == "longrope":
            yield "rope.scaling.attn_factor", _attention_factor(config, rope)


def _original_context(config: Mapping[str, Any], rope: Mapping[str, Any]) -> int:
    original = config.get("original_max_position_embeddings")
    original = original or rope.get("original_max_position_embeddings")
    return int(original or config["max_position_embeddings"])


def _attention_factor(config: Mapping[str, Any], rope: Mapping[str, Any]) -> float:
    """Return the factor of cosines and sines (LongRoPE), by default sqrt(1 + ln(context / original)
    / ln original)."""
    if factor := rope.get("attention_factor"):
        return float(factor)
    original = _original_context(config, rope)
    ratio = config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0


def _factors(
    config: Mapping[str, Any], rope: Mapping[str, Any], rotated: int
) -> dict[str, tuple[float, ...]]:
    """Return the tensors of divisors of rotary frequencies by their names in GGUF."""
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{length}.weight": tuple(map(float, rope[f"{length}_factor"]))
            for length in ("long", "short")
        }
    if rope["rope_type"] == "llama3":
        original = _original_context(config, rope)
        inverse = (rope["rope_theta"] ** (2 * n / rotated) for n in range(rotated // 2))
        return {"rope_freqs.weight": tuple(_llama3_factor(1 / x, rope, original) for x in inverse)}
    return {}


def _llama3_factor(theta: float, rope: Mapping[str, Any], original: int) -> float:
    """Return the divisor of a rotary frequency in Llama 3.1. It is `factor` if fewer than `low` of
    its waves fit into the original context, 1 if more than `high` do, and
    1 / ((1 - t) / factor + t) in between."""
    low, high, factor = (rope[f"{x}factor"] for x in ("low_freq_", "high_freq_", ""))
    waves = original * theta / (2 * math.pi)
    if waves < low:
        return float(factor)
    t = min(1.0, (waves - low) / (high - low))
    return 1 / ((1 - t) / factor + t)


def _refused(why: str) -> ConfigError:
    return ConfigError(
        "This model cannot be written as GGUF.",
        why,
        "Use the saved folder, or convert it with llama.cpp's convert_hf_to_gguf.py.",
        field="model",
    )
