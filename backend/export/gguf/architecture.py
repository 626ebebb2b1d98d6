"""Models that can be written as GGUF: sizes and order of rows. Does not import torch. llama.cpp
rotates neighbouring values of a head where transformers rotates its two halves, so for `llama` the
rows of the query and key projections change places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.errors import ConfigError

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
INTERLEAVED = "llama"


@dataclass(frozen=True)
class GGUFArchitecture:
    """The sizes of a model, under the names of GGUF. `rows`: end of a parameter's module -> heads
    whose rows change places."""

    name: str
    context: int
    hidden: int
    blocks: int
    inner: int
    heads: int
    key_heads: int
    head_size: int
    rope_base: float
    norm_epsilon: float
    vocabulary: int
    tied: bool

    @property
    def rows(self) -> dict[str, int]:
        if self.name != INTERLEAVED:
            return {}
        return {"self_attn.q_proj": self.heads, "self_attn.k_proj": self.key_heads}


def architecture_of(config: Mapping[str, Any]) -> GGUFArchitecture:
    """The architecture of the model with this config.json; `ConfigError` if it cannot be written as
    GGUF, or llama.cpp would compute something else."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise _refused(f"Its architecture is {kind}; supported are {', '.join(ARCHITECTURES)}.")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (scaling := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise _refused(f"It scales its rotary positions ({scaling}).")
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", kind == "mistral")
    short = used and window and window < config["max_position_embeddings"]
    if short or "sliding_attention" in (config.get("layer_types") or ()):
        raise _refused("Some of its layers attend to a sliding window only.")
    if config.get("mlp_bias"):
        raise _refused("Its feed-forward layers have biases.")
    heads = config["num_attention_heads"]
    return GGUFArchitecture(
        name=ARCHITECTURES[kind],
        context=config["max_position_embeddings"],
        hidden=config["hidden_size"],
        blocks=config["num_hidden_layers"],
        inner=config["intermediate_size"],
        heads=heads,
        key_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        norm_epsilon=config["rms_norm_eps"],
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings")),
    )


def _refused(why: str) -> ConfigError:
    return ConfigError(
        "This model cannot be written as GGUF.",
        why,
        "Use the saved folder, or convert it with llama.cpp's convert_hf_to_gguf.py.",
        field="model",
    )
