"""Packed weights of others and ours, as the headers of the dense weights they stand for. Does not
import torch.

    GPTQ                 qweight [in n / 32, out], qzeros, scales, g_idx
    AWQ (gemm)           qweight [in, out n / 32], qzeros, scales
    compressed-tensors   weight_packed [out, ceil(in n / 32)], weight_scale, weight_shape, ...
    slimscope            the same; of grids with offsets weight_offset; written by Slimscope

`backend.export.reading` unpacks them; everything else is refused here, with the reason."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from backend.models.facts import EMBEDDINGS, HEADS, refused
from backend.models.families.stored import IN_OUT, TensorHeader
from backend.models.sources.headers import read_headers

WORD_BITS = 32  # of the words that hold codes
PARTS = {  # method -> what a packed layer has instead of a weight, the codes first
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "compressed-tensors": (
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
    ),
    "slimscope": (
        "weight_packed",
        "weight_scale",
        "weight_offset",
        "weight_zero_point",
        "weight_shape",
    ),
}
SCALES = {
    **dict.fromkeys(("gptq", "awq"), "scales"),
    **dict.fromkeys(("compressed-tensors", "slimscope"), "weight_scale"),
}
EMBEDDINGS_AND_HEADS = {name.removesuffix(".weight") for name in (*EMBEDDINGS, *HEADS)}
LAYER_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
NO_SHAPES: Mapping[str, tuple[int, ...]] = MappingProxyType({})
REMEDY = "Choose the original model, or one packed by GPTQ, AWQ or compressed-tensors."

Format = Literal["compressed-tensors", "gptq", "gptq_v2", "slimscope", "dense"]
StoredGrid: TypeAlias = Literal["symmetric", "zero-point", "offset"]


@dataclass(frozen=True)
class PackedGroup:
    """Layers, by full name, that are packed in another way than all others."""

    layers: tuple[str, ...]
    bits: int
    group_size: int
    grid: StoredGrid = "symmetric"


@dataclass(frozen=True)
class Layout:
    """Quantization settings of all layers of a model. `group_size`: 0 for one group per row.
    `others`: of layers that have their own."""

    format: Format | Literal["awq"]
    bits: int
    group_size: int
    grid: StoredGrid
    others: tuple[PackedGroup, ...] = ()

    def of(self, layer: str) -> "Layout":
        """The settings of one layer."""
        group = next((group for group in self.others if layer in group.layers), None)
        return Layout(self.format, group.bits, group.group_size, group.grid) if group else self

    @property
    def linears(self) -> "tuple[Layout, ...]":
        """The settings that there are of layers of the blocks, those of most layers first."""
        inside = (x for x in self.others if not EMBEDDINGS_AND_HEADS.issuperset(x.layers))
        others = (Layout(self.format, x.bits, x.group_size, x.grid) for x in inside)
        return (replace(self, others=()), *others)

    @property
    def width(self) -> str:
        """Bits of the linear layers in words: "4 bits", "2 to 6 bits"."""
        bits = [each.bits for each in self.linears]
        return f"{min(bits)} to {max(bits)} bits" if len({*bits}) > 1 else f"{bits[0]} bits"

    @property
    def method(self) -> str:
        """As a quantization_config names it, without the version of the format."""
        return "gptq" if self.format == "gptq_v2" else self.format

    def __str__(self) -> str:
        outside = (x for x in self.others if EMBEDDINGS_AND_HEADS.issuperset(x.layers))
        more = (f", {' and '.join(x.layers)} {x.bits}" for x in outside)
        return f"{self.method}, {self.width}{''.join(more)}"


def layout_in(spec: str, config: Mapping[str, Any]) -> Layout | None:
    """How a model with this config.json is packed; None if it is not. Raises ModelError: in a way
    that cannot be read."""
    settings = config.get("quantization_config")
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        raise refused(spec, "Its quantization_config is not a JSON object.", REMEDY)
    method = str(settings.get("quant_method", "some method"))[:80]
    if method not in PARTS:
        raise refused(spec, f"Its weights are quantized by {method}, which cannot be read.", REMEDY)
    try:
        if method == "slimscope":
            found = _ours(settings)
        else:
            compressed = method == "compressed-tensors"
            found = _compressed(settings) if compressed else _gptq(settings, method)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise refused(
            spec, f"Its quantization_config ({method}) cannot be read: {error!r}.", REMEDY
        ) from error
    sizes = {(found.bits, found.group_size), *((x.bits, x.group_size) for x in found.others)}
    if any(not 2 <= bits <= 8 or size < 0 for bits, size in sizes):
        raise refused(spec, f"It is packed as {found}, which is not supported.", REMEDY)
    return found


def _ours(settings: Mapping[str, Any]) -> Layout:
    grid: StoredGrid = settings.get("grid", "offset")
    if grid not in get_args(StoredGrid):
        raise ValueError(f"grid {grid}")
    sizes = int(settings["bits"]), int(settings["group_size"])
    others = [
        PackedGroup(
            tuple(group["layers"]),
            int(group["bits"]),
            int(group["group_size"]),
            group.get("grid", "symmetric"),
        )
        for group in settings.get("groups", ())
    ]
    return Layout("slimscope", *sizes, grid, _apart(others))


def _apart(groups: Sequence[PackedGroup]) -> tuple[PackedGroup, ...]:
    """Groups that name their layers, each in one of them. Raises ValueError: they do not."""
    names = [*chain.from_iterable(group.layers for group in groups)]
    odd = next((x for x in names if not isinstance(x, str) or not LAYER_NAME.fullmatch(x)), None)
    if odd is not None:
        raise ValueError(f"a group of layers by {odd!r:.80}, which is no name of one")
    if len({*names}) < len(names) or any(not group.layers for group in groups):
        raise ValueError("groups that share a layer, or have none")
    if any(group.grid not in get_args(StoredGrid) for group in groups):
        raise ValueError("a grid that is not known")
    return tuple(groups)


def _gptq(settings: Mapping[str, Any], method: str) -> Layout:
    bits = int(settings["bits"] if "bits" in settings else settings["w_bit"])
    size = int(settings["group_size"] if "group_size" in settings else settings["q_group_size"])
    if method == "awq" and str(settings.get("version", "gemm")).lower() != "gemm":
        raise ValueError(f"version {settings['version']}")
    format: Any = settings.get("checkpoint_format", "gptq") if method == "gptq" else method
    if format not in ("awq", "gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format {format}")
    grid: StoredGrid = "symmetric" if settings.get("sym") else "zero-point"
    return Layout(format, bits, 0 if size == -1 else size, grid)


def _compressed(settings: Mapping[str, Any]) -> Layout:
    groups = [*settings["config_groups"].values()]
    formats = {settings.get("format"), *(group.get("format") for group in groups)} - {None}
    types = {group["weights"].get("type", "int") for group in groups}
    if formats != {"pack-quantized"} or types != {"int"}:
        raise ValueError(f"format {sorted(map(str, formats))}")
    first, *rest = (_group(group) for group in groups)
    sizes = first.bits, first.group_size, first.grid
    return Layout("compressed-tensors", *sizes, _apart(rest))


def _group(settings: Mapping[str, Any]) -> PackedGroup:
    weights = settings["weights"]
    grid: StoredGrid = "symmetric" if weights["symmetric"] else "zero-point"
    size = max(int(weights.get("group_size") or 0), 0)
    return PackedGroup(tuple(settings.get("targets", ())), int(weights["num_bits"]), size, grid)


def unpacked(
    spec: str,
    packing: Layout,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorHeader],
    shapes: Mapping[str, tuple[int, ...]] = NO_SHAPES,
) -> dict[str, TensorHeader]:
    """The headers of the dense model: one weight for each packed layer. `shapes`: layer -> [out,
    in], where its file says so: the last word of a row may be padded. Raises ModelError: the
    tensors of a layer do not fit together, or there is no packed layer."""
    parts, found = PARTS[packing.method], dict[str, TensorHeader]()
    transposed = str(config.get("model_type", "")) in IN_OUT
    for name, header in tensors.items():
        layer, _, part = name.rpartition(".")
        if part not in parts:
            found[name] = header
        elif part == parts[0]:
            shape = _dense_shape(spec, layer, packing.of(layer), tensors)
            given = shapes.get(layer, ())
            if len(given) == 2 and given[0] == shape[0] and 0 < given[1] <= shape[1]:
                shape = (given[0], given[1])
            dtype = tensors[f"{layer}.{SCALES[packing.method]}"].dtype
            turned = transposed and layer not in EMBEDDINGS_AND_HEADS
            found[f"{layer}.weight"] = TensorHeader(shape[::-1] if turned else shape, dtype)
    if len(found) == len(tensors):
        raise refused(spec, f"Its config says {packing}, but no layer is packed so.", REMEDY)
    return found


def packed_layers(folder: Path) -> set[str]:
    """The full names of the layers of a folder that hold codes."""
    endings = {parts[0] for parts in PARTS.values()}
    parts = (name.rpartition(".") for name in read_headers(folder))
    return {layer for layer, _, ending in parts if ending in endings}


def rounded_share(tensors: Mapping[str, TensorHeader], dense: Mapping[str, TensorHeader]) -> float:
    """Share of the weights of the `dense` model that are packed in `tensors`."""
    packed = sum(header.elements for name, header in dense.items() if name not in tensors)
    return packed / sum(header.elements for header in dense.values())


def _dense_shape(
    spec: str, layer: str, packing: Layout, tensors: Mapping[str, TensorHeader]
) -> tuple[int, int]:
    """[out, in] of a packed layer."""
    codes = tensors[f"{layer}.{PARTS[packing.method][0]}"].shape
    scales = tensors.get(f"{layer}.{SCALES[packing.method]}")
    if len(codes) != 2 or scales is None or len(scales.shape) != 2:
        raise refused(spec, f"The packed tensors of {layer} do not fit together.", REMEDY)
    if packing.method == "gptq":
        return codes[1], codes[0] * WORD_BITS // packing.bits
    if packing.method == "awq":
        return codes[1] * WORD_BITS // packing.bits, codes[0]
    inputs = scales.shape[1] * packing.group_size or codes[1] * WORD_BITS // packing.bits
    return codes[0], inputs
