"""The header of a GGUF file, and what it says of heads, windows, caps and rotary positions as a
config of transformers, whose own reader of GGUF leaves most of it out. Read in a limited child
process (see `limited`), since the numbers in the file say how much there is to read.

llama.cpp stores the frequencies of Llama 3.1 as factors that they are divided by. With F the
largest, waves_i = original theta_i / 2 pi, and low and high as in the config,

    1 / factor_i = (1 - t) / F + t,   t = (waves_i - low) / (high - low),   from 0 to 1

so that t is linear in theta_i = base^(-2 i / rotated) wherever it is between; low is 1."""

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

PERIODS = {"gemma2": 2, "gemma3": 6}  # every so many layers the last one has no window
DIVIDED_SCALE = {"gemma2": 46, "gemma3": 62}  # blocks of the model that scales by width / heads
TOLERANCE = 1e-3  # of the frequencies

Values = Mapping[str, Any]  # of the header, without the name of the architecture
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
FACTORS = "rope_"
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
SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "max_position_embeddings": "context_length",
}
ABOUT = {
    "name": "general.name",
    "description": "general.description",
    "license": "general.license",
    "base_model": "general.base_model.0.repo_url",
    "calibration": "quantize.imatrix.file",
}
MAX_TENSORS = 50_000
MAX_TEXT = 300  # characters of a text in the metadata


def config_values(architecture: str, values: Values, factors: Factors) -> dict[str, Any]:
    """Entries of the config; `factors`: the tensors `rope_freqs`, `rope_factors_*` by their names.
    Raises ModelError: transformers would compute other positions."""
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
        raise _refused(f"Its rotary positions are scaled by {kind[:40]}.")
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
    low, high, original = 1.0, 4.0, 8192  # as of Llama 3.1 and 3.2
    if between.sum() > 1:
        slope, start = np.polyfit(theta[between], t[between], 1)  # t = slope theta + start
        if start < 0:
            high = 1 - 1 / start
            original = round(2 * math.pi * slope * (high - low))
    expected = np.clip((original * theta / (2 * math.pi) - low) / (high - low), 0, 1)
    again = 1 / ((1 - expected) / most + expected)
    if not usable or not np.allclose(again, factors, rtol=TOLERANCE):
        raise _refused("Its rotary frequencies are scaled in a way of its own.")
    return {
        "rope_type": "llama3",
        "factor": most,
        "low_freq_factor": low,
        "high_freq_factor": round(float(high), 4),
        "original_max_position_embeddings": int(original),
    }


class HeaderReader(GGUFReader):
    """Reads a header whose numbers may be wrong: nothing behind the end of the file, where numpy
    would return short arrays for ever. An array is one part, and of strings only their number is
    kept: a vocabulary has hundreds of thousands."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise _ends_early()
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(self._get(orig_offs, np.uint32)[0])
        length = self._get(orig_offs + 4, np.uint64)
        types, start = [GGUFValueType.ARRAY, kind], orig_offs + 12
        if kind == GGUFValueType.STRING:
            return self._behind_strings(start, int(length[0])) - orig_offs, [length], [], types
        if kind == GGUFValueType.ARRAY:
            raise _refused("Its header has an array of arrays.")
        items = self._get(start, self.gguf_scalar_to_np[kind], length[0])
        return start + items.nbytes - orig_offs, [items], [0], types

    def _behind_strings(self, start: int, count: int) -> int:
        """The offset behind `count` strings, each stored as its length and its bytes."""
        length = struct.Struct("<Q" if self.endianess == GGUFEndian.LITTLE else ">Q")
        content, end = self.data.data, len(self.data)
        for _ in range(count):
            if start + length.size > end:
                raise _ends_early()
            start += length.size + length.unpack_from(content, start)[0]
        if start > end:
            raise _ends_early()
        return start

    def _build_tensor_info(self, offs: int, count: int) -> Any:
        if count > MAX_TENSORS:
            raise _refused(f"It has {count:,} tensors; up to {MAX_TENSORS:,} are accepted.")
        return super()._build_tensor_info(offs, count)

    def strings(self, name: str) -> int:
        """Number of strings in the array `name`; 0 where there is no such array."""
        field = self.get_field(name)
        if field is None or field.types != [GGUFValueType.ARRAY, GGUFValueType.STRING]:
            return 0
        return int(field.parts[-1][0])


def read_header(path: Path) -> dict[str, Any]:
    """`config` as after conversion, `tensors`: parameter -> shape and type, such as Q4_1, `kinds`:
    type -> number of tensors and of their weights, and what the file tells `about` its origin.
    Raises ModelError: not a GGUF file, or an unsupported architecture."""
    try:
        return _header(HeaderReader(path))
    except ModelError:
        raise
    except Exception as error:  # on malformed files the reader can raise anything
        raise _refused(f"It cannot be read as GGUF: {error}.") from error


def _header(reader: HeaderReader) -> dict[str, Any]:
    if any(len(tensor.name) > MAX_NAME for tensor in reader.tensors):
        raise _refused("The names of its tensors are too long.")
    architecture = str(_field(reader, "general.architecture"))
    config = _config(reader, architecture)
    tensors = {
        # GGUF order is [in, out]
        _name(architecture, each.name): (tuple(map(int, each.shape[::-1])), each.tensor_type.name)
        for each in reader.tensors
        if not each.name.startswith(FACTORS)  # of rotary frequencies, recomputed on loading
    }
    embedding, _ = tensors.get("model.embed_tokens.weight", ((), ""))
    of_blocks = ("model.layers.", "blk.")
    blocks = any(len(s) > 1 and name.startswith(of_blocks) for name, (s, _) in tensors.items())
    if not embedding or not blocks:
        raise _refused("It has no token embedding or no blocks.")
    config["vocab_size"] = embedding[0]
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    if not 0 < reader.strings("tokenizer.ggml.tokens") <= embedding[0]:
        raise _refused(f"It has no tokenizer for its {embedding[0]} embeddings.")
    kinds = {kind: [0, 0] for _, kind in tensors.values()}
    for shape, kind in tensors.values():
        kinds[kind] = [kinds[kind][0] + 1, kinds[kind][1] + prod(shape)]
    about = {name: _text(reader, key) for name, key in ABOUT.items()}
    return {"config": config, "tensors": tensors, "kinds": kinds, "about": about}


def _text(reader: GGUFReader, name: str) -> str:
    """A text of the metadata, as far as it is shown; "" where there is none."""
    value = _value(reader, name)
    return one_line(value)[:MAX_TEXT] if isinstance(value, str) else ""


def _value(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _field(reader: GGUFReader, name: str) -> Any:
    value = _value(reader, name)
    if not isinstance(value, int | str):
        raise _refused(f"It cannot be read as GGUF: it has no {name}.")
    return value


def _config(reader: GGUFReader, architecture: str) -> dict[str, Any]:
    experts = f"{architecture}.expert_count"
    if reader.get_field(experts) and _field(reader, experts) not in (0, 1):
        raise _refused("It is a mixture of experts.")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise _refused(f"Its architecture is {architecture[:80]}; supported: {known}.")
    sizes = {name: _field(reader, f"{architecture}.{key}") for name, key in SIZES.items()}
    prefix = f"{architecture}."
    numbers = {
        name.removeprefix(prefix): field.contents()
        for name, field in reader.fields.items()
        if name.startswith(prefix)
    }
    factors = {
        tensor.name.removesuffix(".weight"): tensor.data
        for tensor in reader.tensors
        if tensor.name.startswith(FACTORS) and tensor.tensor_type.name == "F32"
    }
    return {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": "gemma3_text" if architecture == "gemma3" else architecture,
        **sizes,
        **config_values(architecture, numbers, factors),
    }


def _name(architecture: str, name: str) -> str:
    """The parameter's name after conversion; norms keep theirs."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        modules = PHI3_MODULES if architecture == "phi3" else MODULES
        return f"model.layers.{match[1]}.{modules.get(match[2], match[2])}.{match[3]}"
    head = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    return head.get(name, name)


def _ends_early() -> ModelError:
    return _refused("The file ends before what its header announces.")


def _refused(why: str) -> ModelError:
    return ModelError("The GGUF file cannot be used.", why)
