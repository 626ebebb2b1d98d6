"""The header of a GGUF file. Runs in a limited child process (see `limited`), since the numbers in
the file say how much there is to read."""

import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from backend.errors import ModelError
from backend.models.facts import MAX_NAME
from backend.models.sources.gguf_config import UnknownRopeError, config_values
from backend.printable import one_line

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
MODEL_TYPES = {"gemma3": "gemma3_text"}  # where transformers has another name
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
    "licence": "general.license",
    "base_model": "general.base_model.0.repo_url",
    "calibration": "quantize.imatrix.file",
}
MAX_TENSORS = 50_000
MAX_TEXT = 300  # characters of a text in the metadata


class BoundedGGUFReader(GGUFReader):
    """Reads nothing behind the end of the file: numpy would return short arrays for ever."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise _refused("The file ends before what its header announces.")
        return super()._get(offset, dtype, count, override_order)


def read_header(path: Path) -> dict[str, Any]:
    """`config` as after conversion, `tensors`: parameter -> shape and type, such as Q4_1, `kinds`:
    type -> number of tensors and of their weights, and what the file tells `about` its origin.
    Raises ModelError: not a GGUF file, or an unsupported architecture."""
    try:
        return _header(BoundedGGUFReader(path))
    except ModelError:
        raise
    except Exception as error:  # on malformed files the reader can raise anything
        raise _refused(f"It cannot be read as GGUF: {error}.") from error


def _header(reader: GGUFReader) -> dict[str, Any]:
    if len(reader.tensors) > MAX_TENSORS or any(len(t.name) > MAX_NAME for t in reader.tensors):
        raise _refused("Its tensors are too many, or their names too long.")
    architecture = str(_field(reader, "general.architecture"))
    config = _config(reader, architecture)
    tensors = _tensors(reader, architecture)
    embedding, _ = tensors.get("model.embed_tokens.weight", ((), ""))
    of_blocks = ("model.layers.", "blk.")
    blocks = any(len(s) > 1 and name.startswith(of_blocks) for name, (s, _) in tensors.items())
    if not embedding or not blocks:
        raise _refused("It has no token embedding or no blocks.")
    config["vocab_size"] = embedding[0]
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None or not 0 < len(tokens.data) <= embedding[0]:
        raise _refused(f"It has no tokenizer for its {embedding[0]} embeddings.")
    kinds = {kind: [0, 0] for _, kind in tensors.values()}
    for shape, kind in tensors.values():
        kinds[kind] = [kinds[kind][0] + 1, kinds[kind][1] + prod(shape)]
    about = {name: _text(reader, key) for name, key in ABOUT.items()}
    return {"config": config, "tensors": tensors, "kinds": kinds, "about": about}


def _text(reader: GGUFReader, name: str) -> str:
    """A text of the metadata, as far as it is shown; "" where there is none."""
    field = reader.get_field(name)
    value = None if field is None else field.contents()
    return one_line(value)[:MAX_TEXT] if isinstance(value, str) else ""


def _tensors(reader: GGUFReader, architecture: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type by parameter name."""
    found = {}
    for tensor in reader.tensors:
        if tensor.name.startswith(FACTORS):
            continue  # of rotary frequencies, which are recomputed on loading
        shape = tuple(int(size) for size in tensor.shape[::-1])  # GGUF order is [in, out]
        found[_name(architecture, tensor.name)] = shape, tensor.tensor_type.name
    return found


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    value = None if field is None else field.contents()
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
    try:
        more = config_values(architecture, numbers, factors)
    except UnknownRopeError as error:
        raise _refused(str(error)) from error
    kind = MODEL_TYPES.get(architecture, architecture)
    return {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": kind,
        **sizes,
        **more,
    }


def _name(architecture: str, name: str) -> str:
    """The parameter's name after conversion; norms keep theirs."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        modules = PHI3_MODULES if architecture == "phi3" else MODULES
        return f"model.layers.{match[1]}.{modules.get(match[2], match[2])}.{match[3]}"
    head = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    return head.get(name, name)


def _refused(why: str) -> ModelError:
    return ModelError("The GGUF file cannot be used.", why)
