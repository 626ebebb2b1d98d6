"""Read GGUF headers, and convert GGUF files to folders that transformers loads. Reading a header
imports no torch; converting does.

Dequantised weights lie on the grid of the file's block format. Rounding them to a grid of the same
size is lossless, so quantization results on such a model can be too optimistic.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend.errors import ModelError
from backend.models.facts import TensorHeader
from backend.models.sources.headers import OPTIONS

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
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
FLOATS = {"F64", "F32", "F16", "BF16"}


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, TensorHeader], str]:
    """config.json and safetensors headers as after conversion, and a note on the quantization.

    The headers have the float32 dtype of the converted folder.

    Raises:
        ModelError: not a GGUF file, or an unsupported architecture.
    """
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)  # reading the vocabulary takes seconds; a changed file is read again
def _read(
    path: Path, changed: int, size: int
) -> tuple[dict[str, Any], dict[str, TensorHeader], str]:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if _small(name)}
        architecture = str(fields["general.architecture"])
        config = _config(path, architecture, fields)
    except ModelError:
        raise
    except Exception as error:  # on malformed files the reader can raise anything
        raise _refused(path, f"It cannot be read as GGUF: {error}.") from error
    headers, kinds = {}, Counter[str]()
    for tensor in reader.tensors:
        if tensor.name.startswith("rope_"):
            continue  # rotary frequencies, recomputed on loading
        shape = tuple(int(size) for size in tensor.shape[::-1])  # GGUF order is [in, out]
        headers[_name(architecture, tensor.name)] = TensorHeader(shape, "F32")
        if tensor.name.startswith("blk.") and len(shape) > 1:
            kinds[tensor.tensor_type.name] += int(tensor.n_elements)
    config["vocab_size"] = headers["model.embed_tokens.weight"].shape[0]
    config["tie_word_embeddings"] = "lm_head.weight" not in headers
    return config, headers, dequantised_note(kinds.most_common(1)[0][0])


def _small(field: str) -> bool:
    """Whether a field is not part of the vocabulary."""
    return not field.startswith("tokenizer.")


def _config(path: Path, architecture: str, fields: dict[str, Any]) -> dict[str, Any]:
    if int(fields.get(f"{architecture}.expert_count", 0)) > 1:
        raise _refused(path, "It is a mixture of experts.")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise _refused(path, f"Its architecture is {architecture}; supported: {known}.")
    sizes = {name: int(fields[f"{architecture}.{key}"]) for name, key in SIZES.items()}
    return {"architectures": [ARCHITECTURES[architecture]], "model_type": architecture, **sizes}


def _name(architecture: str, name: str) -> str:
    """The parameter's name after conversion; norms keep theirs."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        modules = PHI3_MODULES if architecture == "phi3" else MODULES
        return f"model.layers.{match[1]}.{modules.get(match[2], match[2])}.{match[3]}"
    head = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    return head.get(name, name)


def dequantised_note(kind: str) -> str:
    """A caveat on weights dequantised from GGUF tensors of type `kind` (such as Q4_1)."""
    if kind in FLOATS:
        return ""
    bits = re.match(r"I?Q(\d)", kind)
    grid = f"{'an' if bits[1] == '8' else 'a'} {bits[1]}-bit grid" if bits else "a coarse grid"
    return f"dequantised from {kind}: already rounded to {grid}"


def convert(path: Path, folder: Path) -> None:
    """Write the model in GGUF file `path` to `folder`: config, float32 safetensors, tokenizer.

    Raises:
        ModelError: transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, **OPTIONS}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = auto.from_pretrained(**source, dtype=torch.float32)
    except Exception as error:  # unsupported files fail in transformers with any exception
        raise _refused(path, f"transformers cannot convert it: {error}.") from error
    model.hf_quantizer, model.is_quantized = None, False  # otherwise save_pretrained raises
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path.name} cannot be used.",
        why,
        "Choose a GGUF file of a dense LLaMA-like model.",
        "model",
    )
