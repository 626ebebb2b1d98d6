"""Support of model families: the methods that can work on a model, and reasons why others cannot.

Decided from the config, before a run is queued. Does not import torch.
`tests/models/every_family.py` runs every method on tiny models of all these families and writes
docs/models.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.errors import ModelError
from backend.models.families.stored import SEPARATE_EXPERTS

EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
MIXTURES = (  # families whose experts can be compressed one by one
    *SEPARATE_EXPERTS,
    "granitemoe",
    "granitemoeshared",
    "granitemoehybrid",
    "gpt_oss",
    "qwen3_5_moe_text",
)
BETWEEN_BLOCKS = "It changes the hidden states between its blocks"
NOT_BY_BLOCK = {
    "rwkv": f"{BETWEEN_BLOCKS}, and divides its weights while it runs.",
    "zamba": "Its blocks share one set of weights.",
    "zamba2": "Its blocks share one set of weights.",
}
STATE = "Some of its layers cache one state for all tokens, so rejected drafts cannot be removed."
ALIBI = "Its positions are distances between cached tokens (ALiBi), which differ in a draft tree."
NO_TREES = {
    **dict.fromkeys(
        (
            "rwkv",
            "mamba",
            "mamba2",
            "falcon_mamba",
            "jamba",
            "falcon_h1",
            "zamba",
            "zamba2",
            "nemotron_h",
            "bamba",
            "recurrent_gemma",
            "minimax",
            "lfm2",
            "lfm2_moe",
            "granitemoehybrid",
            "qwen3_next",
            "qwen3_5_text",
            "qwen3_5_moe_text",
            "kimi_linear",
        ),
        STATE,
    ),
    **dict.fromkeys(("bloom", "mpt"), ALIBI),
    "openai-gpt": "It has no cache of keys and values.",
    "bert": "It has another layer between its last block and its head.",
    "gpt_neo": "Its local attention counts cached tokens, not positions.",
}
PACKED = "Its weights are packed, and can only be unpacked all at once."
EXPERTS = "Its experts are stored in a different layout than they are loaded."


@dataclass(frozen=True)
class ModelSupport:
    """Reasons why a model cannot be used in some ways; "" if it can.

    Attributes:
        compress: reason against SDS and DL-QAT.
        decode: reason against the decoding loop, which verifies draft trees, and against drafters.
        clone: reason against cloning its layers as the adaptation layers of a drafter.
        stream: reason against reading it block by block from its files.
        mixture: True if it is a mixture of experts.
        separate: True if a checkpoint can store each expert by itself, and therefore packed.
    """

    compress: str = ""
    decode: str = ""
    clone: str = ""
    stream: str = ""
    mixture: bool = False
    separate: bool = False


def support_of(config: Mapping[str, Any], linears: int, packed: bool = False) -> ModelSupport:
    """Decide how a model can be used.

    Args:
        config: config of the language model.
        linears: number of matrices that methods compress.
        packed: True if its weights are packed codes.
    """
    family = str(config.get("model_type", ""))
    is_mixture = isinstance(config.get("ffn_config"), Mapping) or any(
        isinstance(config.get(key), int) and config[key] > 1 for key in EXPERT_KEYS
    )
    hidden, embedding = config.get("hidden_size"), config.get("word_embed_proj_dim")
    clone = ""
    if family == "gemma3n_text":
        clone = "Its layers read several versions of the hidden states at once."
    elif embedding is not None and embedding != hidden:
        clone = f"Its blocks are {hidden} wide, but its embedding and head are {embedding} wide."
    unpacked_stream = EXPERTS if is_mixture else ""
    return ModelSupport(
        compress=_compression_problem(family, is_mixture, linears),
        decode=_decoding_problem(family, config),
        clone=clone,
        stream=PACKED if packed else unpacked_stream,
        mixture=is_mixture,
        separate=family in SEPARATE_EXPERTS,
    )


def _compression_problem(family: str, is_mixture: bool, linears: int) -> str:
    if family in NOT_BY_BLOCK:
        return NOT_BY_BLOCK[family]
    if is_mixture and family not in MIXTURES:
        return f"Mixtures of experts of the family {family} are not supported."
    return "" if linears else "It has no attention and no MLP layers."


def _decoding_problem(family: str, config: Mapping[str, Any]) -> str:
    if family in NO_TREES:
        return NO_TREES[family]
    if config.get("alibi") is True:
        return ALIBI
    layer_types = config.get("layer_types")
    for layer_type in layer_types if isinstance(layer_types, list) else ():
        if layer_type not in ("full_attention", "sliding_attention"):
            name = str(layer_type)[:40]
            return f"It has layers of the type {name}, which do not cache every token."
    return ""


def unsupported(title: str, why: str, cannot: str, do: str) -> ModelError:
    """Build the error for a model that a method cannot work on. `cannot`: such as "cannot be
    compressed"."""
    return ModelError(f"{title} {cannot}.", why, do, field="model")
