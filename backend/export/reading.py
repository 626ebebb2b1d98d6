"""Reading of folders with packed weights, from Slimscope (`writing.export`) or other programs: as
codes, as a dense model, or as a model with packed weights for the native decoder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import GENERATION_CONFIG_NAME

from backend.decoding.native.model import obstacle
from backend.errors import ModelError
from backend.export.formats import Layout, read_layout, unreadable
from backend.export.layouts import from_awq, from_gptq, from_packed
from backend.models.block_offload import check_finite, tied_names
from backend.models.facts import ModelFacts, text_config
from backend.models.families.experts import split_experts
from backend.models.families.stored import (
    EXPERTS,
    SEPARATE_EXPERTS,
    LinearShape,
    expert_position,
    loaded_name,
    stored_modules,
)
from backend.models.sources.cache import Say, silent
from backend.models.sources.headers import (
    OPTIONS,
    exclusive_construction,
    read_config,
    weight_files,
)
from backend.models.sources.quantized import PARTS
from backend.models.sources.spec import check_unchanged
from backend.printable import readable_bytes
from backend.quantization.grid import QuantizedWeight, joined, quantized_from
from backend.quantization.packed_linear import RUN, expand, pack_model

READERS = {
    **dict.fromkeys(("compressed-tensors", "slimscope"), from_packed),
    **dict.fromkeys(("gptq", "gptq_v2"), from_gptq),
    "awq": from_awq,
}


def read_layers(folder: Path) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """Read the quantized layers of a folder by full name, possibly with the embedding and the head,
    and all other tensors.

    Raises:
        ModelError: config and weights do not match.
    """
    layout, tensors = read_layout(folder), dict[str, Tensor]()
    try:
        for path in weight_files(folder):
            tensors |= load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(folder, f"{error}.") from error
    suffix = f".{PARTS[layout.method][0]}"
    names = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    if not names:
        raise unreadable(folder, f"It has no tensors in {layout.format} format.")
    if missing := {name for group in layout.others for name in group.layers} - {*names}:
        raise unreadable(folder, f"Its config lists {min(missing)} as quantized, but it is not.")
    layers, unquantized = dict[str, QuantizedWeight](), dict(tensors)
    for name in names:
        prefix = f"{name}."
        parts = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        layers[name] = layer_from(name, parts, layout.of(name))
        for part in parts:
            if part != "bias":
                del unquantized[f"{prefix}{part}"]
    family = str(text_config(read_config(folder)).get("model_type"))
    return (
        _as_loaded(folder, family, layers, unquantized)
        if family in SEPARATE_EXPERTS
        else (layers, unquantized)
    )


def _as_loaded(
    folder: Path,
    family: str,
    layers: Mapping[str, QuantizedWeight],
    unquantized: Mapping[str, Tensor],
) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """Rename layers and other tensors as in the loaded model, and join gate and up projection of
    each expert.

    Raises:
        ModelError: a projection is missing, or the two do not match.
    """
    parts = dict[str, dict[int, QuantizedWeight]]()
    for name, layer in layers.items():
        module, index = expert_position(family, name)
        parts.setdefault(module, {})[index] = layer
    loaded_layers = dict[str, QuantizedWeight]()
    for name, by_index in parts.items():
        halves = [by_index[index] for index in sorted(by_index)]
        sizes = {(*x.codes.shape, x.group_size) for x in halves}
        if len(halves) != len(stored_modules(family, name)) or len(sizes) > 1:
            raise unreadable(folder, f"The parts of {name} are missing or differ.")
        loaded_layers[name] = joined(halves)
    tensors = dict[str, Tensor]()
    for stored_name, tensor in unquantized.items():
        name = loaded_name(family, stored_name)
        if fused := EXPERTS.fullmatch(name):
            for number, expert in enumerate(tensor):
                tensors[f"{fused[1]}.{number}.{fused[2]}.weight"] = expert
        else:
            tensors[name] = tensor
    return loaded_layers, tensors


def layer_from(name: str, tensors: Mapping[str, Tensor], layout: Layout) -> QuantizedWeight:
    """Restore a layer from its tensors by name suffix.

    Raises:
        ModelError: the tensors are inconsistent.
    """
    try:
        codes, scale, zero = READERS[layout.format](tensors, layout)
        groups = codes.shape[1] // (layout.group_size or codes.shape[1])
        if scale.shape != (len(codes), groups) or codes.shape[1] % groups:
            raise ValueError(
                f"its scales {list(scale.shape)} do not match groups of {layout.group_size} of "
                f"weights {list(codes.shape)}"
            )
        scale, zero = _expand_groups(tensors, scale, zero)
    except KeyError as error:
        raise _inconsistent(name, f"it has no {error.args[0]}") from error
    except (RuntimeError, ValueError) as error:
        raise _inconsistent(name, str(error)) from error
    return quantized_from(name, layout.bits, {"codes": codes, "scale": scale, "zero": zero})


def _expand_groups(
    tensors: Mapping[str, Tensor], scale: Tensor, zero: Tensor
) -> tuple[Tensor, Tensor]:
    """Return scales and zero-points [out, groups]. If inputs are assigned to groups in another
    order ("act-order"), every input becomes a group: [out, in]."""
    order, groups = tensors.get("g_idx", tensors.get("weight_g_idx")), scale.shape[1]
    if order is None:
        return scale, zero
    if int(order.min()) < 0 or int(order.max()) >= groups:
        raise ValueError(f"its inputs belong to groups {int(order.min())} to {int(order.max())}")
    neighbors = torch.arange(len(order), dtype=order.dtype) // (len(order) // groups)
    if torch.equal(order, neighbors):
        return scale, zero
    return scale[:, order.long()], zero[:, order.long()]


def _inconsistent(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} cannot be read.",
        f"{why[0].upper()}{why[1:]}.",
        "Config and weights do not match. Export the model again.",
        field="model",
    )


@exclusive_construction
@torch.no_grad()
def load_packed(folder: Path, say: Say = silent) -> PreTrainedModel:
    """Load a folder in bfloat16 on the CPU, with packed weights if the native decoder supports the
    model, otherwise expanded. `say` is called with a note on layers that are expanded.

    Raises:
        ModelError: the folder is damaged, or a tensor is not finite.
    """
    model, layers = _open_folder(folder, torch.bfloat16)
    if reason := obstacle(model):
        expanded = sum(2 * x.codes.numel() for x in layers.values())
        packed = sum((1 + x.grid.bits / 8) * x.codes.numel() for x in layers.values())
        sizes = f"{readable_bytes(expanded)} of memory instead of {readable_bytes(packed)}"
        say(f"Packed weights are expanded to 16 bits, {sizes}. {reason}")
        expand(model, layers)
    elif unpacked := pack_model(model, layers):
        reason = f"the native decoder reads codes in groups of a multiple of {RUN}"
        say(f"{len(unpacked)} of {len(layers)} layers are decoded in 16 bits: {reason}.")
    return model.eval()


@exclusive_construction
@torch.no_grad()
def load_dequantized(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a folder of packed weights as a dense model on the CPU. In float32 its weights are
    exactly s (q - z).

    Raises:
        ModelError: the folder is damaged, or a tensor is not finite.
    """
    model, layers = _open_folder(folder, dtype)
    expand(model, layers)
    model.config.use_cache = False
    return model.eval()


class StoredLinears:
    """Reader of the weight matrices in a folder of safetensors files. It reads one matrix at a
    time, so models larger than the memory can be inspected. Names are those of the loaded model."""

    def __init__(self, folder: Path, linears: Sequence[LinearShape]) -> None:
        self._files, self._linears = dict[str, Path](), linears  # stored tensor -> file
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def block(self, index: int, device: str = "cpu") -> Iterator[tuple[LinearShape, Tensor]]:
        """Yield the weights [out, in] of one decoder block in float32."""
        for linear in self._linears:
            if linear.block == index:
                yield linear, self.read(linear, device)

    def read(self, linear: LinearShape, device: str = "cpu") -> Tensor:
        """Read one matrix [out, in] in float32."""
        location, parts = linear.stored, []
        for name in location.names:
            with safe_open(self._files[name], framework="pt", device=device) as file:
                tensor = file.get_slice(name)
                part = tensor[:] if location.expert is None else tensor[location.expert]
                parts.append(part.float())
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        return weight.T.contiguous() if location.transposed else weight


class DequantizedLinears(StoredLinears):
    """Reader of the weight matrices in a folder of packed weights."""

    def __init__(self, folder: Path, linears: Sequence[LinearShape]) -> None:
        self._layers, self._unquantized = read_layers(folder)
        self._linears = linears

    def read(self, linear: LinearShape, device: str = "cpu") -> Tensor:
        if layer := self._layers.get(linear.name):
            return layer.dense().to(device)
        names = (f"{linear.name}.weight", *linear.stored.names)
        weight = next(
            self._unquantized[name] for name in names if name in self._unquantized
        ).float()
        return (weight.T.contiguous() if linear.stored.transposed else weight).to(device)


def linears_in(folder: Path, facts: ModelFacts, linears: Sequence[LinearShape]) -> StoredLinears:
    """Return the reader for `linears` of the model in `folder`, packed or not."""
    reader = DequantizedLinears if facts.quantized else StoredLinears
    return reader(folder, linears)


def _open_folder(
    folder: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, QuantizedWeight]]:
    """Return a model without the weights of its packed layers, and these layers."""
    check_unchanged(folder, contents=True)
    layers, unquantized = read_layers(folder)
    for name, tensor in unquantized.items():
        check_finite(name, tensor)
    for name, layer in layers.items():
        check_finite(f"The scale of {name}", layer.grid.scale)
    config = AutoConfig.from_pretrained(folder, **OPTIONS)
    del config.quantization_config
    auto: Any = AutoModelForCausalLM
    with no_init_weights():  # every weight is read from the files, or it is an error
        model: PreTrainedModel = auto.from_config(config, dtype=dtype)
    split_experts(model)
    _fill(model, unquantized, layers, folder, dtype)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, **OPTIONS)
    return model, layers


def _fill(
    model: PreTrainedModel,
    unquantized: Mapping[str, Tensor],
    layers: Mapping[str, QuantizedWeight],
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Load all tensors that are not quantized. Raise `ModelError` if one is missing."""
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in unquantized.items()}
    report = model.load_state_dict(state, strict=False)
    model.tie_weights()
    tied = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    packed = {f"{name}.weight" for name in layers}
    for names, _ in tied_names(model):
        tensors = [state[n] for n in names if n in state]
        equal = all(torch.equal(tensor, tensors[0]) for tensor in tensors)
        if not equal or bool(tensors) + len(packed.intersection(names)) > 1:
            raise unreadable(
                folder, f"Its config ties {' and '.join(names)}, but their weights differ."
            )
    missing = set(report.missing_keys) - tied - packed
    if missing or report.unexpected_keys:
        first = min(missing or report.unexpected_keys)
        problem = "lacks" if missing else "has no parameter"
        raise unreadable(folder, f"The model of its config {problem} {first}.")
