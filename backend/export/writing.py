"""Write a folder with a quantized model: weights, config, tokenizer, model card."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backend.export.formats import ExportRequirements, Layout, check_format, experts_of
from backend.export.layouts import (
    compressed_tensors_config,
    gptq_config,
    gptq_tensors,
    packed_tensors,
)
from backend.models.blocks import all_linears, swap_weights, turned
from backend.models.families.experts import fused
from backend.models.families.stored import SEPARATE, stored_modules, together
from backend.models.foreign_tokenizer import TextTokenizer
from backend.models.saving import SHARD, check_saved, save, save_around, stored_buffers
from backend.quantization.grid import QuantizedWeight


def export(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    layers: Mapping[str, QuantizedWeight],
    layout: Layout,
    stored: torch.dtype,
    folder: Path,
    card: str,
) -> None:
    """Write `folder`, without further rounding. Raises ConfigError, ModelError: see `check_format`,
    `check_saved`.

    Args:
        model: provides all tensors that are not in `layers`, already rounded to `stored`.
        layers: full name of a linear, of the embedding or the head -> its codes, scales and
            zero-points.
        stored: dtype of scales, embeddings and norms; in the format dense, of all weights.
    """
    if layout.format == "awq":
        raise ValueError("AWQ is read, not written")
    for each in layout.linears:
        needed = requirements_of(model, layers, layout, stored)
        check_format(layout.format, replace(needed, bits=each.bits, grid=each.grid))
    if layout.format == "dense":
        linears = {name: model.get_submodule(name) for name in layers}
        dense = {
            linear.get_parameter("weight"): turned(linear, layers[name].dense().to(stored))
            for name, linear in linears.items()
        }
        with swap_weights(dense):
            save(model, tokenizer, folder, card, stored)
        return
    family, tensors = str(model.config.model_type), dict[str, Tensor]()
    packed = {f"{name}.weight" for name in layers} | {together(name) for name in layers}
    with fused(model):
        for name, tensor in (*model.named_parameters(), *stored_buffers(model).items()):
            if name not in packed:
                module, _, part = name.rpartition(".")
                kept = tensor.detach().cpu()
                kept = kept.to(stored) if kept.is_floating_point() else kept
                tensors[f"{stored_modules(family, module)[0]}.{part}"] = kept
    loaded, alike = dict[str, tuple[str, tuple[int, ...]]](), Counter(map(together, layers))
    for module, layer in layers.items():
        whole, shape = together(module), (*layer.codes.shape,)
        place = (f"{module}.weight", shape) if whole == module else (whole, (alike[whole], *shape))
        names = stored_modules(family, module)
        for name, own in zip(names, layer.split(len(names)), strict=True):
            loaded[name] = place
            for suffix, value in layer_tensors(own, layout.of(module), stored).items():
                tensors[f"{name}.{suffix}"] = value.contiguous().cpu()
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD)
    quantization = quantization_config(model, layers, layout)
    save_around(model, tokenizer, folder, card, stored, quantization)
    check_saved(folder, loaded)


def requirements_of(
    model: PreTrainedModel,
    layers: Mapping[str, QuantizedWeight],
    layout: Layout,
    stored: torch.dtype,
) -> ExportRequirements:
    """What a format must support to store the model."""
    inside = {linear.name for linear in all_linears(model)}
    embeddings = [n for n in layers if isinstance(model.get_submodule(n), nn.Embedding)]
    heads = [n for n in layers if n not in inside and n not in embeddings]
    family, own = str(model.config.model_type), {n for x in layout.others for n in x.layers}
    sizes = ((*x.codes.shape, len(stored_modules(family, n))) for n, x in layers.items())
    return ExportRequirements(
        bits=layout.bits,
        grid=layout.grid,
        stored=str(stored).split(".")[1],
        in_out=any(isinstance(model.get_submodule(name), Conv1D) for name in layers),
        experts=experts_of(family in SEPARATE, inside, layers.keys() - own, own),
        whole=inside <= layers.keys(),
        shapes=frozenset((rows // parts, columns) for rows, columns, parts in sizes),
        architecture=type(model).__name__,
        embedding=sum(layout.of(n).bits for n in embeddings),
        alike=all(layout.of(n) == layout.linears[0] for n in embeddings),
        head=sum(layout.of(n).bits for n in heads),
    )


def layer_tensors(layer: QuantizedWeight, layout: Layout, stored: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a layer, by name suffix. Lossless: scales and offsets are numbers of the
    stored dtype already (`QuantGrid.stored`)."""
    if layout.format in ("compressed-tensors", "slimscope"):
        return packed_tensors(layer, layout, stored)
    return gptq_tensors(layer, layout, stored)


def quantization_config(
    model: PreTrainedModel, layers: Mapping[str, QuantizedWeight], layout: Layout
) -> dict[str, Any]:
    """The `quantization_config` of config.json."""
    if layout.format == "compressed-tensors":
        return compressed_tensors_config(model, layers.keys(), layout)
    if layout.format == "slimscope":
        sizes = {"bits": layout.bits, "group_size": layout.group_size, "grid": layout.grid}
        groups = [
            {"layers": [*x.layers], "bits": x.bits, "group_size": x.group_size, "grid": x.grid}
            for x in layout.others
        ]
        return {"quant_method": "slimscope", **sizes, **({"groups": groups} if groups else {})}
    return gptq_config(layout)
