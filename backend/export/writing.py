"""Writing of quantized models as a folder: weights, config, tokenizer, model card."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
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
from backend.models.block_offload import iterate_parameters, overridden
from backend.models.blocks import all_linears, block_linears, swap_weights
from backend.models.families.experts import fused
from backend.models.families.stored import SEPARATE_EXPERTS, stored_modules, tensor_name
from backend.models.foreign_tokenizer import TextTokenizer
from backend.models.saving import (
    SHARD_BYTES,
    check_saved,
    persistent_buffers,
    save,
    save_config_and_tokenizer,
)
from backend.quantization.grid import QuantizedWeight


def export(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    layers: Mapping[str, QuantizedWeight],
    layout: Layout,
    dtype: torch.dtype,
    folder: Path,
    card: str,
) -> None:
    """Write `folder` without further rounding.

    Args:
        model: provides all tensors that are not in `layers`, already rounded to `dtype`.
        layers: full name -> codes, scales and zero-points of a linear, the embedding or the head.
        layout: format, and the settings of each layer.
        dtype: dtype of scales, embeddings and norms; in the format dense, of all weights.
        card: text of the model card.

    Raises:
        ConfigError: the format does not support the model; see `check_format`.
        ModelError: the written model is damaged; see `check_saved`.
    """
    if layout.format == "awq":
        raise ValueError("AWQ can be read, but not written")
    for linear_layout in layout.linears:
        requirements = requirements_of(model, layers, layout, dtype)
        requirements = replace(requirements, bits=linear_layout.bits, grid=linear_layout.grid)
        check_format(layout.format, requirements)
    if layout.format == "dense":
        outside = layers.keys() - {linear.name for linear in all_linears(model)}
        embeddings = {model.get_submodule(n).get_parameter("weight"): layers[n] for n in outside}

        def weights(block: int) -> dict[str, Tensor]:
            linears = block_linears(model, block).items()
            return {m: layers[x.name].dense().to(dtype) for m, x in linears if x.name in layers}

        with (
            overridden(model, weights),
            swap_weights({p: layer.dense().to(dtype) for p, layer in embeddings.items()}),
        ):
            save(model, tokenizer, folder, card, dtype)
        return
    family, tensors = str(model.config.model_type), dict[str, Tensor]()
    packed = {f"{name}.weight" for name in layers} | {tensor_name(name) for name in layers}
    with fused(model):
        for name, tensor in chain(iterate_parameters(model), persistent_buffers(model).items()):
            if name not in packed:
                module, _, part = name.rpartition(".")
                value = tensor.detach().cpu()
                value = value.to(dtype) if value.is_floating_point() else value
                tensors[f"{stored_modules(family, module)[0]}.{part}"] = value
    # stored name -> name and shape of the parameter that transformers loads it into
    parameters, experts = (
        dict[str, tuple[str, tuple[int, ...]]](),
        Counter(map(tensor_name, layers)),
    )
    for module, layer in layers.items():
        fused_name, shape = tensor_name(module), (*layer.codes.shape,)
        parameter = f"{module}.weight", shape
        if fused_name != module:
            parameter = fused_name, (experts[fused_name], *shape)
        names = stored_modules(family, module)
        for name, part_layer in zip(names, layer.split(len(names)), strict=True):
            parameters[name] = parameter
            for suffix, value in layer_tensors(part_layer, layout.of(module), dtype).items():
                tensors[f"{name}.{suffix}"] = value.contiguous().cpu()
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD_BYTES)
    quantization = quantization_config(model, layers, layout)
    save_config_and_tokenizer(model, tokenizer, folder, card, dtype, quantization)
    check_saved(folder, parameters)


def requirements_of(
    model: PreTrainedModel,
    layers: Mapping[str, QuantizedWeight],
    layout: Layout,
    dtype: torch.dtype,
) -> ExportRequirements:
    """Return the properties that a format must support to store the model."""
    linears = {linear.name for linear in all_linears(model)}
    embeddings = [n for n in layers if isinstance(model.get_submodule(n), nn.Embedding)]
    heads = [n for n in layers if n not in linears and n not in embeddings]
    family, others = str(model.config.model_type), {n for x in layout.others for n in x.layers}
    sizes = ((*x.codes.shape, len(stored_modules(family, n))) for n, x in layers.items())
    return ExportRequirements(
        bits=layout.bits,
        grid=layout.grid,
        scale_dtype=str(dtype).split(".")[1],
        in_out=any(isinstance(model.get_submodule(name), Conv1D) for name in layers),
        experts=experts_of(family in SEPARATE_EXPERTS, linears, layers.keys() - others, others),
        all_quantized=linears <= layers.keys(),
        shapes=frozenset((rows // parts, columns) for rows, columns, parts in sizes),
        architecture=type(model).__name__,
        embedding=sum(layout.of(n).bits for n in embeddings),
        uniform_embedding=all(layout.of(n) == layout.linears[0] for n in embeddings),
        head=sum(layout.of(n).bits for n in heads),
    )


def layer_tensors(layer: QuantizedWeight, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a layer by name suffix. Lossless, because scales and offsets are
    already rounded to the dtype of the scales (`QuantGrid.stored`)."""
    if layout.format in ("compressed-tensors", "slimscope"):
        return packed_tensors(layer, layout, dtype)
    return gptq_tensors(layer, layout, dtype)


def quantization_config(
    model: PreTrainedModel, layers: Mapping[str, QuantizedWeight], layout: Layout
) -> dict[str, Any]:
    """Return the `quantization_config` of config.json."""
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
