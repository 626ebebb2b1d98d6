"""Saving a causal LM as a folder that transformers loads, and checking the saved folder."""

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
from backend.models.sources.headers import INDEX, OPTIONS, alone, read_headers

SHARD = 2**30  # maximum bytes per saved file
Shape = tuple[int, ...]
NOT_QUANTIZED: Mapping[str, tuple[str, Shape]] = MappingProxyType({})


def save(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    folder: Path,
    card: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that transformers loads: safetensors, config, tokenizer, README.md.

    Weights are split into files of at most `SHARD` bytes, written one at a time.

    Args:
        model: model to save.
        tokenizer: its tokenizer.
        folder: new or existing folder.
        card: text of README.md.
        dtype: dtype of the saved weights, except for tensors whose values it would change; None:
            dtype of the model.

    Raises:
        ModelError: see `check_saved`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.dtype
    with fused(model):
        persistent = stored_buffers(model)
        tensors = {**dict(model.named_parameters()), **persistent}
        plan = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD)
        shards, total_bytes = {file: dict[str, Tensor]() for file in plan.filename_to_tensors}, 0
        for name, tensor in chain(iterate_parameters(model), persistent.items()):
            file = plan.tensor_to_filename[name]
            cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if not torch.equal(cast.to(tensor.dtype), tensor):
                cast = tensor  # norms of a 16-bit model may be float32
            shards[file][name] = cast.contiguous()
            total_bytes += shards[file][name].nbytes
            if len(shards[file]) == len(plan.filename_to_tensors[file]):
                save_file(shards.pop(file), folder / file, metadata={"format": "pt"})
        if plan.is_sharded:
            index = {"metadata": {"total_size": total_bytes}, "weight_map": plan.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=2))
    save_around(model, tokenizer, folder, card, dtype)
    check_saved(folder)


def save_around(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    folder: Path,
    card: str,
    dtype: torch.dtype,
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Write everything except the weights of a saved model, with the key-value cache enabled.

    Args:
        model: model to save.
        tokenizer: its tokenizer.
        folder: existing folder.
        card: text of README.md.
        dtype: dtype of the saved weights.
        quantization: `quantization_config` of the saved config; None if there is none.
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


def stored_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """The buffers of the model's state dict, by name."""
    names = model.state_dict().keys() - dict(model.named_parameters()).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in names}


def check_saved(folder: Path, quantized: Mapping[str, tuple[str, Shape]] = NOT_QUANTIZED) -> None:
    """Check that the tensors in a saved folder belong to the model that its config describes.

    No tensor is missing or unknown, and all have the right shape. A tied tensor is stored under one
    of its names.

    Args:
        folder: saved folder.
        quantized: module stored as packed codes -> name and shape of the loaded tensor that
            contains the module's weights.

    Raises:
        ModelError: plain transformers would load another model.
    """
    shapes = {name: header.shape for name, header in read_headers(folder).items()}
    for module, (tensor_name, shape) in quantized.items():
        packed = [n for n in shapes if n.rpartition(".")[0] == module and n != f"{module}.bias"]
        for name in packed:
            del shapes[name]
        if packed:
            shapes[tensor_name] = shape
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


@alone
def _expected_tensors(folder: Path) -> tuple[str, str, list[tuple[list[str], Shape]]]:
    """Name of the class that plain transformers builds for the folder's config, its family, and
    names and shape of each of its tensors."""
    config = AutoConfig.from_pretrained(folder, **OPTIONS)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    auto: Any = AutoModelForCausalLM
    config.dtype = torch.float32  # so that transformers leaves the process-wide default dtype alone
    with torch.device("meta"):  # applies to this thread only
        model = auto.from_config(config, trust_remote_code=False)
    model.tie_weights()
    tensors = [(names, tuple(tensor.shape)) for names, tensor in tied_names(model)]
    return type(model).__name__, config.model_type, tensors


def _mismatch(why: str) -> ModelError:
    return ModelError(
        "The saved model does not match its config.",
        f"{why} Plain transformers would load another model.",
        "Start a new run from a plain model, without adapters.",
    )
