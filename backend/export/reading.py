"""Read and check a folder written by `writing.export`: as codes, or as a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from backend.export.formats import no_export, read_layout
from backend.export.layouts import layer_from
from backend.models.block_offload import check_finite
from backend.models.sources.cache import Say, silent
from backend.models.sources.folder import check_unchanged
from backend.models.sources.headers import weight_files
from backend.quantization.grid import QuantizedWeight
from backend.quantization.packed_linear import pack_model

WEIGHT_SUFFIX = {"compressed-tensors": "weight_packed", "gptq": "qweight", "gptq_v2": "qweight"}


def read_layers(folder: Path) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """The quantised layers of an exported folder by full name, and all other tensors.

    Raises:
        ModelError: config and weights do not match.
    """
    layout, tensors = read_layout(folder), dict[str, Tensor]()
    try:
        for path in weight_files(folder):
            tensors |= load_file(path)
    except (OSError, SafetensorError) as error:
        raise no_export(folder, f"{error}.") from error
    ending = f".{WEIGHT_SUFFIX[layout.format]}"
    names = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
    if not names:
        raise no_export(folder, f"It has no tensors in {layout.format} format.")
    layers, rest = dict[str, QuantizedWeight](), dict(tensors)
    for name in names:
        prefix = f"{name}."
        parts = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        layers[name] = layer_from(name, parts, layout)
        for suffix in parts:
            if suffix != "bias":
                del rest[f"{prefix}{suffix}"]
    return layers, rest


@torch.no_grad()
def load_packed(folder: Path, say: Say = silent) -> PreTrainedModel:
    """Load an exported folder as a model on packed weights, in bfloat16, on the CPU.

    Layers that the int4 operator does not support are dense; `say` gets the reasons.

    Raises:
        ModelError: not an exported folder, damaged, or values that are not finite.
    """
    check_unchanged(folder, contents=True)
    layers, rest = read_layers(folder)
    _check_finite(layers, rest)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    del config.quantization_config
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config, dtype=torch.bfloat16)
    _fill(model, rest, layers, folder)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    dense = pack_model(model, layers)
    for why in dict.fromkeys(dense.values()):
        count = sum(each == why for each in dense.values())
        say(f"{count} of {len(layers)} layers run dense: {why}.")
    return model.eval()


def _check_finite(layers: Mapping[str, QuantizedWeight], rest: Mapping[str, Tensor]) -> None:
    for name, tensor in rest.items():
        check_finite(name, tensor)
    for name, layer in layers.items():
        check_finite(f"The scale of {name}", layer.grid.scale)


def _fill(
    model: PreTrainedModel,
    rest: Mapping[str, Tensor],
    layers: Mapping[str, QuantizedWeight],
    folder: Path,
) -> None:
    """Load all tensors that are not quantised; check that no other tensor is missing."""
    report = model.load_state_dict({n: t.to(torch.bfloat16) for n, t in rest.items()}, strict=False)
    model.tie_weights()
    tied = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    absent = set(report.missing_keys) - tied - {f"{name}.weight" for name in layers}
    if absent or report.unexpected_keys:
        first = min(absent or report.unexpected_keys)
        what = "lacks" if absent else "has no parameter"
        raise no_export(folder, f"The model of its config {what} {first}.")
