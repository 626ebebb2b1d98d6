"""What the header of a GGUF file says of heads, windows, caps and rotary positions, as a config of
transformers, whose own reader of GGUF leaves most of it out.

llama.cpp stores the frequencies of Llama 3.1 as factors that they are divided by. With F the
largest, waves_i = original theta_i / 2 pi, and low and high as in the config,

    1 / factor_i = (1 - t) / F + t,   t = (waves_i - low) / (high - low),   from 0 to 1

so that t is linear in theta_i = base^(-2 i / rotated) wherever it is between; low is 1.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERIODS = {"gemma2": 2, "gemma3": 6}  # every so many layers the last one has no window
DIVIDED_SCALE = {"gemma2": 46, "gemma3": 62}  # blocks of the model that scales by width / heads
USUAL_WAVES = (1.0, 4.0, 8192)  # low, high, original context of Llama 3.1 and 3.2
TOLERANCE = 1e-3  # of the frequencies

Values = Mapping[str, Any]  # of the header, without the name of the architecture
Factors = Mapping[str, NDArray[np.float32]]


class UnknownRopeError(ValueError):
    """Rotary positions that no config of transformers describes."""


def config_values(architecture: str, values: Values, factors: Factors) -> dict[str, Any]:
    """Entries of the config; `factors`: the tensors `rope_freqs`, `rope_factors_*` by their names.
    Raises UnknownRopeError: transformers would compute other positions."""
    heads = int(values["attention.head_count"])
    width, head = int(values["embedding_length"]), int(values.get("attention.key_length", 0))
    head = head or width // heads
    known: dict[str, Any] = {} if architecture == "phi3" else {"head_dim": head}
    rotated = int(values.get("rope.dimension_count", head))
    known |= _ropes(architecture, values, factors, head, rotated)
    if architecture in PERIODS:
        divided = values["block_count"] == DIVIDED_SCALE[architecture]
        known["query_pre_attn_scalar"] = width // heads if divided else head
        known["sliding_window"] = int(values["attention.sliding_window"])
    if architecture == "gemma2":
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            known[cap] = float(values[cap])
    if architecture == "phi3":
        known["sliding_window"] = int(values.get("attention.sliding_window", 0)) or None
    return known


def _ropes(
    architecture: str, values: Values, factors: Factors, head: int, rotated: int
) -> dict[str, Any]:
    rope = _rope(values, factors, head, rotated)
    if architecture == "gemma3":
        base = float(values.get("rope.freq_base_swa", 10000.0))
        local = {"rope_type": "default", "rope_theta": base}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
    if rope["rope_type"] != "longrope":
        return {"rope_parameters": rope}
    original = int(values["rope.scaling.original_context_length"])
    return {"rope_parameters": rope, "original_max_position_embeddings": original}


def _rope(values: Values, factors: Factors, head: int, rotated: int) -> dict[str, Any]:
    base = float(values.get("rope.freq_base", 10000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if rotated != head:
        rope["partial_rotary_factor"] = rotated / head
    kind = str(values.get("rope.scaling.type", "none"))
    original = values.get("rope.scaling.original_context_length")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": float(values["rope.scaling.factor"])}
        if kind == "yarn" and original:
            rope["original_max_position_embeddings"] = int(original)
    elif kind not in ("none", "longrope"):
        raise UnknownRopeError(f"Its rotary positions are scaled by {kind[:40]}.")
    if "rope_factors_long" in factors:
        both = {f"{x}_factor": factors[f"rope_factors_{x}"].tolist() for x in ("short", "long")}
        rope |= {
            "rope_type": "longrope",
            "original_max_position_embeddings": int(original or 0),
            **both,
        }
        if "rope.scaling.attn_factor" in values:
            rope["attention_factor"] = float(values["rope.scaling.attn_factor"])
    elif "rope_freqs" in factors:
        rope |= _llama3(factors["rope_freqs"].astype(float), base, rotated)
    return rope


def _llama3(factors: NDArray[Any], base: float, rotated: int) -> dict[str, Any]:
    """Parameters that give these factors."""
    theta = base ** (-2 * np.arange(rotated // 2) / rotated)
    most = float(factors.max(initial=1.0))
    usable = len(factors) == len(theta) and np.isfinite(factors).all() and factors.min() >= 1
    if usable and most == 1:
        return {}
    t = (1 / factors - 1 / most) / (1 - 1 / most) if usable else np.empty(0)
    between = (t > TOLERANCE) & (t < 1 - TOLERANCE)
    low, high, original = USUAL_WAVES
    if between.sum() > 1:
        slope, start = np.polyfit(theta[between], t[between], 1)  # t = slope theta + start
        if start < 0:
            high = 1 - 1 / start
            original = round(2 * math.pi * slope * (high - low))
    expected = np.clip((original * theta / (2 * math.pi) - low) / (high - low), 0, 1)
    again = 1 / ((1 - expected) / most + expected)
    if not usable or not np.allclose(again, factors, rtol=TOLERANCE):
        raise UnknownRopeError("Its rotary frequencies are scaled in a way of its own.")
    return {
        "rope_type": "llama3",
        "factor": most,
        "low_freq_factor": low,
        "high_freq_factor": round(float(high), 4),
        "original_max_position_embeddings": int(original),
    }
