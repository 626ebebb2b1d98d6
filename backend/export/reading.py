"""Read and check a folder of packed weights, of Slimscope (`writing.export`) or others: as codes,
as a dense model, or as one whose codes the native decoder reads."""

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
    SEPARATE,
    LinearShape,
    expert_place,
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
    """The quantized layers of an exported folder by full name, and all other tensors; `ModelError`
    if config and weights do not match. The embedding and the head may be among the layers."""
    layout, tensors = read_layout(folder), dict[str, Tensor]()
    try:
        for path in weight_files(folder):
            tensors |= load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(folder, f"{error}.") from error
    ending = f".{PARTS[layout.method][0]}"
    names = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
    if not names:
        raise unreadable(folder, f"It has no tensors in {layout.format} format.")
    if lost := {name for group in layout.others for name in group.layers} - {*names}:
        raise unreadable(folder, f"Its config says that {min(lost)} is quantized; it is not.")
    layers, rest = dict[str, QuantizedWeight](), dict(tensors)
    for name in names:
        prefix = f"{name}."
        parts = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        layers[name] = layer_from(name, parts, layout.of(name))
        for suffix in parts:
            if suffix != "bias":
                del rest[f"{prefix}{suffix}"]
    family = str(text_config(read_config(folder)).get("model_type"))
    return _as_loaded(folder, family, layers, rest) if family in SEPARATE else (layers, rest)


def _as_loaded(
    folder: Path, family: str, layers: Mapping[str, QuantizedWeight], rest: Mapping[str, Tensor]
) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """Layers and other tensors by the names of the loaded model, gate and up projection of an
    expert as one; `ModelError` if one is missing or does not fit the other."""
    parts = dict[str, dict[int, QuantizedWeight]]()
    for name, layer in layers.items():
        loaded, place = expert_place(family, name)
        parts.setdefault(loaded, {})[place] = layer
    found = dict[str, QuantizedWeight]()
    for name, by_place in parts.items():
        halves = [by_place[place] for place in sorted(by_place)]
        sizes = {(*x.codes.shape, x.group_size) for x in halves}
        if len(halves) != len(stored_modules(family, name)) or len(sizes) > 1:
            raise unreadable(folder, f"The parts of {name} are missing or differ.")
        found[name] = joined(halves)
    tensors = dict[str, Tensor]()
    for stored, tensor in rest.items():
        name = loaded_name(family, stored)
        if fused := EXPERTS.fullmatch(name):
            for number, one in enumerate(tensor):
                tensors[f"{fused[1]}.{number}.{fused[2]}.weight"] = one
        else:
            tensors[name] = tensor
    return found, tensors


def layer_from(name: str, tensors: Mapping[str, Tensor], layout: Layout) -> QuantizedWeight:
    """Restore a layer from its tensors, by name suffix; `ModelError` if they are inconsistent."""
    try:
        codes, scale, zero = READERS[layout.format](tensors, layout)
        groups = codes.shape[1] // (layout.group_size or codes.shape[1])
        if scale.shape != (len(codes), groups) or codes.shape[1] % groups:
            raise ValueError(
                f"its scales {list(scale.shape)} do not match groups of {layout.group_size} of "
                f"weights {list(codes.shape)}"
            )
        scale, zero = _by_input(tensors, scale, zero)
    except KeyError as error:
        raise _inconsistent(name, f"it has no {error.args[0]}") from error
    except (RuntimeError, ValueError) as error:
        raise _inconsistent(name, str(error)) from error
    return quantized_from(name, layout.bits, {"codes": codes, "scale": scale, "zero": zero})


def _by_input(tensors: Mapping[str, Tensor], scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zero-points [out, groups]; [out, in] where inputs are assigned to groups in
    another order ("act-order"): each is read as a group of its own."""
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
        "Config and weights do not match; export the model again.",
        field="model",
    )


@exclusive_construction
@torch.no_grad()
def load_packed(folder: Path, say: Say = silent) -> PreTrainedModel:
    """Load a folder in bfloat16, on the CPU: as codes where the native decoder runs it, else
    expanded. `say` gets what is not read as codes, and why. `ModelError` if it is damaged or not
    finite."""
    model, layers = _opened(folder, torch.bfloat16)
    if why := obstacle(model):
        expanded = sum(2 * x.codes.numel() for x in layers.values())
        packed = sum((1 + x.grid.bits / 8) * x.codes.numel() for x in layers.values())
        sizes = f"{readable_bytes(expanded)} of memory instead of {readable_bytes(packed)}"
        say(f"Packed weights are expanded to 16 bits, {sizes}. {why}")
        expand(model, layers)
    elif lost := pack_model(model, layers):
        why = f"the native decoder reads codes in groups of a multiple of {RUN}"
        say(f"{len(lost)} of {len(layers)} layers are decoded in 16 bits: {why}.")
    return model.eval()


@exclusive_construction
@torch.no_grad()
def load_dequantized(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a folder of packed weights as a dense model on the CPU; in float32 its weights are
    exactly s (q - z). `ModelError` if it is damaged or not finite."""
    model, layers = _opened(folder, dtype)
    expand(model, layers)
    model.config.use_cache = False
    return model.eval()


class StoredLinears:
    """The weight matrices in a folder of safetensors files, one at a time: models larger than the
    memory can be inspected. [out, in], named as in the loaded model; `linears`: from its
    model's facts."""

    def __init__(self, folder: Path, linears: Sequence[LinearShape]) -> None:
        self._files, self._linears = dict[str, Path](), linears  # stored tensor -> its file
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def block(self, index: int, device: str = "cpu") -> Iterator[tuple[LinearShape, Tensor]]:
        """The weights [out, in] of one decoder block in float32."""
        for linear in self._linears:
            if linear.block == index:
                yield linear, self.read(linear, device)

    def read(self, linear: LinearShape, device: str = "cpu") -> Tensor:
        """One of the matrices [out, in]."""
        at, parts = linear.stored, []
        for name in at.names:
            with safe_open(self._files[name], framework="pt", device=device) as file:
                whole = file.get_slice(name)
                parts.append((whole[:] if at.expert is None else whole[at.expert]).float())
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        return weight.T.contiguous() if at.transposed else weight


class DequantizedLinears(StoredLinears):
    """The weight matrices in a folder of packed weights."""

    def __init__(self, folder: Path, linears: Sequence[LinearShape]) -> None:
        self._layers, self._rest = read_layers(folder)
        self._linears = linears

    def read(self, linear: LinearShape, device: str = "cpu") -> Tensor:
        if layer := self._layers.get(linear.name):
            return layer.dense().to(device)
        names = (f"{linear.name}.weight", *linear.stored.names)
        weight = next(self._rest[name] for name in names if name in self._rest).float()
        return (weight.T.contiguous() if linear.stored.transposed else weight).to(device)


def linears_in(folder: Path, facts: ModelFacts, linears: Sequence[LinearShape]) -> StoredLinears:
    """The weights of these matrices of the model in `folder`, packed or not."""
    reader = DequantizedLinears if facts.quantized else StoredLinears
    return reader(folder, linears)


def _opened(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, QuantizedWeight]]:
    """A model whose packed layers are not filled yet, and these."""
    check_unchanged(folder, contents=True)
    layers, rest = read_layers(folder)
    for name, tensor in rest.items():
        check_finite(name, tensor)
    for name, layer in layers.items():
        check_finite(f"The scale of {name}", layer.grid.scale)
    config = AutoConfig.from_pretrained(folder, **OPTIONS)
    del config.quantization_config
    auto: Any = AutoModelForCausalLM
    with no_init_weights():  # all are read, or it is an error
        model: PreTrainedModel = auto.from_config(config, dtype=dtype)
    split_experts(model)
    _fill(model, rest, layers, folder, dtype)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, **OPTIONS)
    return model, layers


def _fill(
    model: PreTrainedModel,
    rest: Mapping[str, Tensor],
    layers: Mapping[str, QuantizedWeight],
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Load all tensors that are not quantized; check that no other tensor is missing."""
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in rest.items()}
    report = model.load_state_dict(state, strict=False)
    model.tie_weights()
    tied = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    packed = {f"{name}.weight" for name in layers}
    for names, _ in tied_names(model):
        given = [state[n] for n in names if n in state]
        same = all(torch.equal(each, given[0]) for each in given)
        if not same or bool(given) + len(packed.intersection(names)) > 1:
            raise unreadable(folder, f"Its config ties {' and '.join(names)}; its weights differ.")
    absent = set(report.missing_keys) - tied - packed
    if absent or report.unexpected_keys:
        first = min(absent or report.unexpected_keys)
        what = "lacks" if absent else "has no parameter"
        raise unreadable(folder, f"The model of its config {what} {first}.")
