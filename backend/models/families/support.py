"""Which methods can work on a model, and why the others cannot. Does not import torch.

Decided by the config, before anything is queued. `tests/models/every_family.py` runs every method
on tiny models of all these families and writes docs/models.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.errors import ModelError
from backend.models.families.stored import SEPARATE

EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
MIXTURES = (  # families whose experts can be compressed one by one
    *SEPARATE,
    "granitemoe",
    "granitemoeshared",
    "granitemoehybrid",
    "gpt_oss",
    "qwen3_5_moe_text",
)
SEQUENTIAL = "Its hidden states are changed between its blocks"
NOT_BY_BLOCK = {
    "rwkv": f"{SEQUENTIAL}, and its weights are divided while it runs.",
    "zamba": "Its blocks share one set of weights.",
    "zamba2": "Its blocks share one set of weights.",
}
STATE = "Some of its layers cache one state for all tokens, so a tree of drafts cannot be cut."
ALIBI = "Its positions are distances between cached tokens (ALiBi), and a tree has other distances."
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
    "bert": "A further layer lies between its last block and its head.",
    "gpt_neo": "Its local attention counts cached tokens, not positions.",
}
PACKED = "Its weights are packed, and all are unpacked at once."
EXPERTS = "Its experts are stored as other tensors than they are loaded."


@dataclass(frozen=True)
class ModelSupport:
    """Why a model cannot be used in some way; "" where it can."""

    compress: str = ""  # by SDS and DL-QAT
    decode: str = ""  # by the decoding loop, which verifies trees, and so by a drafter
    clone: str = ""  # its layers, as the adaptation layers of a drafter
    stream: str = ""  # block by block from its files
    mixture: bool = False  # whether it has experts
    separate: bool = False  # whether a checkpoint can hold each by itself, and so packed


def support_of(config: Mapping[str, Any], linears: int, packed: bool = False) -> ModelSupport:
    """What can be done with a model. `config`: of the language model. `linears`: number of its
    compressed matrices. `packed`: whether its weights are packed codes."""
    family = str(config.get("model_type", ""))
    mixture = isinstance(config.get("ffn_config"), Mapping) or any(
        isinstance(config.get(key), int) and config[key] > 1 for key in EXPERT_KEYS
    )
    hidden, outer = config.get("hidden_size"), config.get("word_embed_proj_dim")
    clone = ""
    if family == "gemma3n_text":
        clone = "Its layers read several versions of the hidden states at once."
    elif outer is not None and outer != hidden:
        clone = f"Its blocks are {hidden} wide, its embedding and head {outer}."
    stream = PACKED if packed else EXPERTS if mixture else ""
    return ModelSupport(
        _compress(family, mixture, linears),
        _decode(family, config),
        clone,
        stream,
        mixture,
        family in SEPARATE,
    )


def _compress(family: str, mixture: bool, linears: int) -> str:
    if family in NOT_BY_BLOCK:
        return NOT_BY_BLOCK[family]
    if mixture and family not in MIXTURES:
        return f"It is a mixture of experts of a kind ({family}) that is not supported."
    return "" if linears else "It has no attention and no MLP layers."


def _decode(family: str, config: Mapping[str, Any]) -> str:
    if family in NO_TREES:
        return NO_TREES[family]
    if config.get("alibi") is True:
        return ALIBI
    types = config.get("layer_types")
    for kind in types if isinstance(types, list) else ():
        if kind not in ("full_attention", "sliding_attention"):  # with keys of every token
            return f"It has layers of the type {str(kind)[:40]}, which do not cache every token."
    return ""


def unsupported(title: str, why: str, cannot: str, do: str) -> ModelError:
    """The error for a model that a method cannot work on; `cannot`: "cannot be compressed"."""
    return ModelError(f"{title} {cannot}.", why, do, field="model")
