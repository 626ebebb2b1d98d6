"""Saving a causal LM as a folder that transformers can load, and checks of the saved folder."""

import json
from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from backend.errors import ModelError
from backend.models.block_offload import iterate_parameters, tied_names
from backend.models.families.experts import fused
from backend.models.families.stored import loaded_name
from backend.models.foreign_tokenizer import TextTokenizer
from backend.models.sources.headers import INDEX, OPTIONS, exclusive_construction, read_headers

SHARD_BYTES = 2**30  # maximum bytes per saved file
Shape = tuple[int, ...]
NOT_QUANTIZED: Mapping[str, tuple[str, Shape]] = MappingProxyType({})


def save(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    folder: Path,
    card: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that transformers can load: safetensors, config, tokenizer, README.md.

    Weights are split into files of at most `SHARD_BYTES` bytes, written one at a time.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: folder to write.
        card: text of README.md.
        dtype: dtype of tensors whose values it represents exactly; None: that of the model.

    Raises:
        ModelError: see `check_saved`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.dtype
    with fused(model):
        persistent = persistent_buffers(model)
        tensors = {**dict(model.named_parameters()), **persistent}
        plan = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD_BYTES)
        pending = {file: dict[str, Tensor]() for file in plan.filename_to_tensors}
        total_bytes = 0
        for name, tensor in chain(iterate_parameters(model), persistent.items()):
            file = plan.tensor_to_filename[name]
            saved = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if not torch.equal(saved.to(tensor.dtype), tensor):
                saved = tensor  # norms of a 16-bit model may be float32
            pending[file][name] = saved.contiguous()
            total_bytes += saved.nbytes
            if len(pending[file]) == len(plan.filename_to_tensors[file]):
                save_file(pending.pop(file), folder / file, metadata={"format": "pt"})
        if plan.is_sharded:
            index = {"metadata": {"total_size": total_bytes}, "weight_map": plan.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=2))
    save_config_and_tokenizer(model, tokenizer, folder, card, dtype)
    check_saved(folder)


def save_config_and_tokenizer(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    folder: Path,
    card: str,
    dtype: torch.dtype,
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Write all files of a saved model except the weights. The config enables the key-value cache.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: folder to write.
        card: text of README.md.
        dtype: dtype of the saved weights.
        quantization: the `quantization_config`, if any.
    """
    config = deepcopy(model.config)
    config.use_cache, config.architectures = True, [type(model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    if quantization:
        config.quantization_config = dict(quantization)
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def persistent_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the persistent buffers of a model, which are saved together with its parameters."""
    names = model.state_dict().keys() - dict(model.named_parameters()).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in names}


def check_saved(folder: Path, quantized: Mapping[str, tuple[str, Shape]] = NOT_QUANTIZED) -> None:
    """Check that a saved folder has exactly the tensors that its config describes, in the right
    shapes. A tied tensor is stored under one of its names.

    Args:
        folder: the saved folder.
        quantized: packed modules, with the name and shape of the tensor that each is loaded as.

    Raises:
        ModelError: plain transformers would load a different model.
    """
    shapes = {name: header.shape for name, header in read_headers(folder).items()}
    for module, (loaded, shape) in quantized.items():
        bias = f"{module}.bias"
        packed = [name for name in shapes if name.rpartition(".")[0] == module and name != bias]
        for name in packed:
            del shapes[name]
        if packed:
            shapes[loaded] = shape
    architecture, family, expected = _expected_tensors(folder)
    unmatched = {loaded_name(family, name): shape for name, shape in shapes.items()}
    for names, shape in expected:
        present = {name: unmatched.pop(name) for name in names if name in unmatched}
        if not present:
            raise _mismatch(f"{names[0]} of {architecture} is not stored.")
        for name, actual in present.items():
            if actual != shape:
                raise _mismatch(f"{name} has the shape {list(actual)}, not {list(shape)}.")
    if unmatched:
        raise _mismatch(f"{architecture} has no parameter {min(unmatched)}.")


@exclusive_construction
def _expected_tensors(folder: Path) -> tuple[str, str, list[tuple[list[str], Shape]]]:
    """Return the class that plain transformers builds for the config of a folder, its family, and
    the names and shape of each of its tensors."""
    config = AutoConfig.from_pretrained(folder, **OPTIONS)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    auto: Any = AutoModelForCausalLM
    config.dtype = torch.float32  # avoids changing the default dtype, which all threads share
    with torch.device("meta"):  # affects only this thread
        model = auto.from_config(config, trust_remote_code=False)
    model.tie_weights()
    tensors = [(names, tuple(tensor.shape)) for names, tensor in tied_names(model)]
    return type(model).__name__, config.model_type, tensors


def _mismatch(why: str) -> ModelError:
    return ModelError(
        "The saved model does not match its config.",
        f"{why} Plain transformers would load a different model.",
        "Start a new run from a plain model, without adapters.",
    )
