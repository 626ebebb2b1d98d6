"""Reader of GGUF headers. It derives the config entries for heads, windows, caps and rotary
positions, most of which transformers' own GGUF reader leaves out. It runs in a limited child
process (see `backend.limited`), because the numbers in the file determine how much is read.

llama.cpp stores the rotary frequencies of Llama 3.1 as factors that they are divided by. With F the
largest factor, waves_i = original theta_i / 2 pi, and low and high as in the config,

    1 / factor_i = (1 - t) / F + t,   t = (waves_i - low) / (high - low),   clipped to 0 … 1

so t is linear in theta_i = base^(-2 i / rotated) wherever it is not clipped; low is 1.
"""

import math
import re
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFEndian, GGUFReader, GGUFValueType
from numpy.typing import NDArray

from backend.errors import ModelError
from backend.models.facts import MAX_NAME
from backend.printable import one_line

# In each period of blocks, only the last one has no sliding window.
PERIODS = {"gemma2": 2, "gemma3": 6}
# Number of blocks of the model size that scales queries by width / heads.
DIVIDED_SCALE = {"gemma2": 46, "gemma3": 62}
TOLERANCE = 1e-3  # relative, for rotary frequencies

Values = Mapping[str, Any]  # header key, without the architecture prefix -> value
Factors = Mapping[str, NDArray[np.float32]]
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
FACTOR_PREFIX = "rope_"
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PHI3_MODULES = MODULES | {"ffn_up": "mlp.gate_up_proj"}
SIZE_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "max_position_embeddings": "context_length",
}
ORIGIN_KEYS = {
    "name": "general.name",
    "description": "general.description",
    "license": "general.license",
    "base_model": "general.base_model.0.repo_url",
    "calibration": "quantize.imatrix.file",
}
MAX_TENSORS = 50_000
MAX_TEXT_CHARACTERS = 300


def config_values(architecture: str, values: Values, factors: Factors) -> dict[str, Any]:
    """Return entries of the config. `factors`: the tensors `rope_freqs` and `rope_factors_*`, by
    name. Raises ModelError: transformers cannot compute these rotary positions."""
    heads, width = int(values["attention.head_count"]), int(values["embedding_length"])
    head_dim = int(values.get("attention.key_length", 0)) or width // heads
    entries: dict[str, Any] = {} if architecture == "phi3" else {"head_dim": head_dim}
    rotated = int(values.get("rope.dimension_count", head_dim))
    entries |= _rope_entries(architecture, values, factors, head_dim, rotated)
    if architecture in PERIODS:
        is_divided = values["block_count"] == DIVIDED_SCALE[architecture]
        entries["query_pre_attn_scalar"] = width // heads if is_divided else head_dim
        entries["sliding_window"] = int(values["attention.sliding_window"])
    if architecture == "gemma2":
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            entries[cap] = float(values[cap])
    if architecture == "phi3":
        entries["sliding_window"] = int(values.get("attention.sliding_window", 0)) or None
    return entries


def _rope_entries(
    architecture: str, values: Values, factors: Factors, head_dim: int, rotated: int
) -> dict[str, Any]:
    rope = _rope_parameters(values, factors, head_dim, rotated)
    if architecture == "gemma3":
        base = float(values.get("rope.freq_base_swa", 10000.0))
        local = {"rope_type": "default", "rope_theta": base}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
    if rope["rope_type"] != "longrope":
        return {"rope_parameters": rope}
    original = int(values["rope.scaling.original_context_length"])
    return {"rope_parameters": rope, "original_max_position_embeddings": original}


def _rope_parameters(
    values: Values, factors: Factors, head_dim: int, rotated: int
) -> dict[str, Any]:
    """Return transformers' `rope_parameters`. `rotated`: number of rotated dimensions of a head."""
    base = float(values.get("rope.freq_base", 10000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if rotated != head_dim:
        rope["partial_rotary_factor"] = rotated / head_dim
    scaling = str(values.get("rope.scaling.type", "none"))
    original = values.get("rope.scaling.original_context_length")
    if scaling in ("linear", "yarn"):
        rope |= {"rope_type": scaling, "factor": float(values["rope.scaling.factor"])}
        if scaling == "yarn" and original:
            rope["original_max_position_embeddings"] = int(original)
    elif scaling not in ("none", "longrope"):
        raise _refused(f"Its rotary positions use the unsupported scaling {scaling[:40]}.")
    if "rope_factors_long" in factors:
        rope |= {
            "rope_type": "longrope",
            "original_max_position_embeddings": int(original or 0),
            "short_factor": factors["rope_factors_short"].tolist(),
            "long_factor": factors["rope_factors_long"].tolist(),
        }
        if "rope.scaling.attn_factor" in values:
            rope["attention_factor"] = float(values["rope.scaling.attn_factor"])
    elif "rope_freqs" in factors:
        rope |= _llama3(factors["rope_freqs"].astype(float), base, rotated)
    return rope


def _llama3(factors: NDArray[Any], base: float, rotated: int) -> dict[str, Any]:
    """Return the `llama3` parameters that produce these factors; empty if all factors are 1. Raises
    ModelError: no parameters do. The default values are those of Llama 3.1 and 3.2."""
    theta = base ** (-2 * np.arange(rotated // 2) / rotated)
    largest = float(factors.max(initial=1.0))
    is_valid = len(factors) == len(theta) and np.isfinite(factors).all() and factors.min() >= 1
    if is_valid and largest == 1:
        return {}
    t = (1 / factors - 1 / largest) / (1 - 1 / largest) if is_valid else np.empty(0)
    is_unclipped = (t > TOLERANCE) & (t < 1 - TOLERANCE)
    low, high, original = 1.0, 4.0, 8192
    if is_unclipped.sum() > 1:
        slope, intercept = np.polyfit(theta[is_unclipped], t[is_unclipped], 1)
        if intercept < 0:
            high = 1 - 1 / intercept
            original = round(2 * math.pi * slope * (high - low))
    fitted_t = np.clip((original * theta / (2 * math.pi) - low) / (high - low), 0, 1)
    fitted_factors = 1 / ((1 - fitted_t) / largest + fitted_t)
    if not is_valid or not np.allclose(fitted_factors, factors, rtol=TOLERANCE):
        raise _refused("The scaling of its rotary frequencies is not supported.")
    return {
        "rope_type": "llama3",
        "factor": largest,
        "low_freq_factor": low,
        "high_freq_factor": round(float(high), 4),
        "original_max_position_embeddings": int(original),
    }


class HeaderReader(GGUFReader):
    """A `GGUFReader` for headers with arbitrary numbers.

    Reading beyond the end of the file is an error; numpy would return short arrays forever. An
    array is stored as one part, and an array of strings only as its length, because a vocabulary
    has hundreds of thousands of strings."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise _truncated()
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item_type = GGUFValueType(self._get(orig_offs, np.uint32)[0])
        length = self._get(orig_offs + 4, np.uint64)
        types, start = [GGUFValueType.ARRAY, item_type], orig_offs + 12
        if item_type == GGUFValueType.STRING:
            return self._end_of_strings(start, int(length[0])) - orig_offs, [length], [], types
        if item_type == GGUFValueType.ARRAY:
            raise _refused("Its header has an array of arrays.")
        items = self._get(start, self.gguf_scalar_to_np[item_type], length[0])
        return start + items.nbytes - orig_offs, [items], [0], types

    def _end_of_strings(self, offset: int, count: int) -> int:
        """Return the offset after `count` strings, each stored as its length and its bytes."""
        length = struct.Struct("<Q" if self.endianess == GGUFEndian.LITTLE else ">Q")
        content, end = self.data.data, len(self.data)
        for _ in range(count):
            if offset + length.size > end:
                raise _truncated()
            offset += length.size + length.unpack_from(content, offset)[0]
        if offset > end:
            raise _truncated()
        return offset

    def _build_tensor_info(self, offs: int, count: int) -> Any:
        if count > MAX_TENSORS:
            raise _refused(f"It has {count:,} tensors; up to {MAX_TENSORS:,} are accepted.")
        return super()._build_tensor_info(offs, count)

    def count_strings(self, name: str) -> int:
        """Return the number of strings in the array `name`, or 0 if there is no such array."""
        field = self.get_field(name)
        if field is None or field.types != [GGUFValueType.ARRAY, GGUFValueType.STRING]:
            return 0
        return int(field.parts[-1][0])


def read_header(path: Path) -> dict[str, Any]:
    """Read a header as a dictionary: `config`, the config after conversion; `tensors`, parameter ->
    shape and type, such as Q4_1; `kinds`, type -> number of tensors and of weights; `about`, the
    origin of the file. Raises ModelError: not a GGUF file, or an unsupported architecture."""
    try:
        return _header(HeaderReader(path))
    except ModelError:
        raise
    except Exception as error:  # the reader raises any exception for malformed files
        raise _refused(f"It cannot be read as GGUF: {error}.") from error


def _header(reader: HeaderReader) -> dict[str, Any]:
    if any(len(tensor.name) > MAX_NAME for tensor in reader.tensors):
        raise _refused("The names of its tensors are too long.")
    architecture = str(_required_value(reader, "general.architecture"))
    config = _config(reader, architecture)
    tensors = {  # GGUF shapes are [in, out]
        _parameter_name(architecture, tensor.name): (
            tuple(map(int, tensor.shape[::-1])),
            tensor.tensor_type.name,
        )
        for tensor in reader.tensors
        if not tensor.name.startswith(FACTOR_PREFIX)  # recomputed when the model is loaded
    }
    embedding, _ = tensors.get("model.embed_tokens.weight", ((), ""))
    block_prefixes = ("model.layers.", "blk.")
    has_blocks = any(
        len(shape) > 1 and name.startswith(block_prefixes) for name, (shape, _) in tensors.items()
    )
    if not embedding or not has_blocks:
        raise _refused("It has no token embedding or no blocks.")
    config["vocab_size"] = embedding[0]
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    if not 0 < reader.count_strings("tokenizer.ggml.tokens") <= embedding[0]:
        raise _refused(f"It has no tokenizer for its {embedding[0]} embeddings.")
    counts_by_type = {type_: [0, 0] for _, type_ in tensors.values()}
    for shape, type_ in tensors.values():
        counts_by_type[type_][0] += 1
        counts_by_type[type_][1] += prod(shape)
    origin = {name: _text(reader, key) for name, key in ORIGIN_KEYS.items()}
    return {"config": config, "tensors": tensors, "kinds": counts_by_type, "about": origin}


def _text(reader: GGUFReader, name: str) -> str:
    """Return a text of the metadata, shortened for display; "" if there is none."""
    value = _value(reader, name)
    return one_line(value)[:MAX_TEXT_CHARACTERS] if isinstance(value, str) else ""


def _value(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _required_value(reader: GGUFReader, name: str) -> Any:
    value = _value(reader, name)
    if not isinstance(value, int | str):
        raise _refused(f"It cannot be read as GGUF: it has no {name}.")
    return value


def _config(reader: GGUFReader, architecture: str) -> dict[str, Any]:
    experts = f"{architecture}.expert_count"
    if reader.get_field(experts) and _required_value(reader, experts) not in (0, 1):
        raise _refused("It is a mixture of experts.")
    if architecture not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise _refused(f"Its architecture is {architecture[:80]}; supported: {supported}.")
    sizes = {
        name: _required_value(reader, f"{architecture}.{key}") for name, key in SIZE_KEYS.items()
    }
    prefix = f"{architecture}."
    values = {
        name.removeprefix(prefix): field.contents()
        for name, field in reader.fields.items()
        if name.startswith(prefix)
    }
    factors = {
        tensor.name.removesuffix(".weight"): tensor.data
        for tensor in reader.tensors
        if tensor.name.startswith(FACTOR_PREFIX) and tensor.tensor_type.name == "F32"
    }
    return {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": "gemma3_text" if architecture == "gemma3" else architecture,
        **sizes,
        **config_values(architecture, values, factors),
    }


def _parameter_name(architecture: str, name: str) -> str:
    """Return the name of a parameter after conversion. Norms of blocks keep the names of their
    modules in the file."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        modules = PHI3_MODULES if architecture == "phi3" else MODULES
        return f"model.layers.{match[1]}.{modules.get(match[2], match[2])}.{match[3]}"
    outer = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    return outer.get(name, name)


def _truncated() -> ModelError:
    return _refused("The file ends before the data that its header announces.")


def _refused(why: str) -> ModelError:
    return ModelError("The GGUF file cannot be used.", why)
