"""GGUF headers, read in a child process, and conversion to folders that transformers loads.
Dequantised weights lie on the grid of the file: quantization results on such a model can be too
optimistic."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from backend.errors import ModelError
from backend.models.families.shapes import TensorHeader
from backend.models.sources.folder import check_no_adapter
from backend.models.sources.headers import OPTIONS
from backend.models.sources.limited import UnreadableFileError, read

FLOATS = {"F64", "F32", "F16", "BF16"}


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, TensorHeader], str]:
    """config.json and safetensors headers as after conversion, and a note on the quantization.

    The headers have the float32 dtype of the converted folder. Raises ModelError: not a GGUF file,
    or an unsupported architecture."""
    check_no_adapter(path.parent)  # transformers would attach it while converting
    try:
        header = read("backend.models.sources.gguf_header:read_header", path)
    except UnreadableFileError as error:
        raise _refused(path, str(error)) from error
    tensors = {name: TensorHeader(tuple(shape), "F32") for name, shape in header["shapes"].items()}
    return header["config"], tensors, dequantized_note(header["kind"])


def dequantized_note(kind: str) -> str:
    """A caveat on weights dequantised from GGUF tensors of type `kind` (such as Q4_1)."""
    if kind in FLOATS:
        return ""
    bits = re.match(r"I?Q(\d)", kind)
    grid = f"{'an' if bits[1] == '8' else 'a'} {bits[1]}-bit grid" if bits else "a coarse grid"
    return f"dequantised from {kind}: already rounded to {grid}"


def convert(path: Path, folder: Path) -> None:
    """Write the model in GGUF file `path` to `folder`: config, float32 safetensors, tokenizer.
    Raises ModelError: transformers cannot read the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    with TemporaryDirectory() as alone:  # or templates and adapters beside the file are read, too
        (Path(alone) / path.name).symlink_to(path)
        source = {"pretrained_model_name_or_path": alone, "gguf_file": path.name, **OPTIONS}
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
