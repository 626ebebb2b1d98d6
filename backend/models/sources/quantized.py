"""Packed weights, described by the headers of the dense weights that they represent. Does not
import torch.

    GPTQ                 qweight [in n / 32, out], qzeros, scales, g_idx
    AWQ (gemm)           qweight [in, out n / 32], qzeros, scales
    compressed-tensors   weight_packed [out, ceil(in n / 32)], weight_scale, weight_shape, ...
    slimscope            as compressed-tensors, plus weight_offset for grids with offsets

n is the number of bits. `backend.export.reading` unpacks these formats. All others raise an error
with the reason.
"""

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

WORD_BITS = 32  # size of the words that hold the codes
PARTS = {  # method -> the tensors of a packed layer, starting with the codes
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
SCALES = {  # method -> the tensor with the scales
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
    """Layers with quantization settings that differ from those of the model.

    Attributes:
        layers: full names of the layers.
        bits: bits per weight.
        group_size: weights per scale; 0 for one group per row.
        grid: type of the grid.
    """

    layers: tuple[str, ...]
    bits: int
    group_size: int
    grid: StoredGrid = "symmetric"


@dataclass(frozen=True)
class Layout:
    """Quantization settings of a model.

    Attributes:
        format: file format of the packed weights.
        bits: bits per weight.
        group_size: weights per scale; 0 for one group per row.
        grid: type of the grid.
        others: layers with different settings.
    """

    format: Format | Literal["awq"]
    bits: int
    group_size: int
    grid: StoredGrid
    others: tuple[PackedGroup, ...] = ()

    def of(self, layer: str) -> "Layout":
        """Return the settings of a layer."""
        group = next((group for group in self.others if layer in group.layers), None)
        return Layout(self.format, group.bits, group.group_size, group.grid) if group else self

    @property
    def linears(self) -> "tuple[Layout, ...]":
        """The different settings of linear layers in the blocks, starting with the default."""
        groups = (x for x in self.others if not EMBEDDINGS_AND_HEADS.issuperset(x.layers))
        layouts = (Layout(self.format, x.bits, x.group_size, x.grid) for x in groups)
        return (replace(self, others=()), *layouts)

    @property
    def width(self) -> str:
        """The bits of the linear layers as text: "4 bits", "2 to 6 bits"."""
        bits = [layout.bits for layout in self.linears]
        return f"{min(bits)} to {max(bits)} bits" if len({*bits}) > 1 else f"{bits[0]} bits"

    @property
    def method(self) -> str:
        """The `quant_method` of a quantization_config, which has no format version."""
        return "gptq" if self.format == "gptq_v2" else self.format

    def __str__(self) -> str:
        outer_groups = (x for x in self.others if EMBEDDINGS_AND_HEADS.issuperset(x.layers))
        suffixes = (f", {' and '.join(x.layers)} {x.bits}" for x in outer_groups)
        return f"{self.method}, {self.width}{''.join(suffixes)}"


def parse_layout(spec: str, config: Mapping[str, Any]) -> Layout | None:
    """Return the quantization settings in a config.json, or None for a dense model. Raises
    ModelError: the weights are packed in an unsupported way."""
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
            layout = _slimscope_layout(settings)
        elif method == "compressed-tensors":
            layout = _compressed_tensors_layout(settings)
        else:
            layout = _gptq_or_awq_layout(settings, method)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise refused(
            spec, f"Its quantization_config ({method}) cannot be read: {error!r}.", REMEDY
        ) from error
    groups: tuple[Layout | PackedGroup, ...] = (layout, *layout.others)
    if any(not 2 <= group.bits <= 8 or group.group_size < 0 for group in groups):
        raise refused(spec, f"It is packed as {layout}, which is not supported.", REMEDY)
    return layout


def _slimscope_layout(settings: Mapping[str, Any]) -> Layout:
    grid: StoredGrid = settings.get("grid", "offset")
    if grid not in get_args(StoredGrid):
        raise ValueError(f"grid {grid}")
    sizes = int(settings["bits"]), int(settings["group_size"])
    groups = [
        PackedGroup(
            tuple(group["layers"]),
            int(group["bits"]),
            int(group["group_size"]),
            group.get("grid", "symmetric"),
        )
        for group in settings.get("groups", ())
    ]
    return Layout("slimscope", *sizes, grid, _checked_groups(groups))


def _checked_groups(groups: Sequence[PackedGroup]) -> tuple[PackedGroup, ...]:
    """Return groups with valid settings and disjoint layers. Raises ValueError: they are not."""
    names = [*chain.from_iterable(group.layers for group in groups)]
    for name in names:
        if not isinstance(name, str) or not LAYER_NAME.fullmatch(name):
            raise ValueError(f"a group of layers has the invalid name {name!r:.80}")
    if len({*names}) < len(names) or any(not group.layers for group in groups):
        raise ValueError("groups of layers are empty or share a layer")
    if any(group.grid not in get_args(StoredGrid) for group in groups):
        raise ValueError("a group of layers has an unknown grid")
    return tuple(groups)


def _gptq_or_awq_layout(settings: Mapping[str, Any], method: str) -> Layout:
    bits = int(settings["bits"] if "bits" in settings else settings["w_bit"])
    size = int(settings["group_size"] if "group_size" in settings else settings["q_group_size"])
    if method == "awq" and str(settings.get("version", "gemm")).lower() != "gemm":
        raise ValueError(f"version {settings['version']}")
    format: Any = settings.get("checkpoint_format", "gptq") if method == "gptq" else method
    if format not in ("awq", "gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format {format}")
    grid: StoredGrid = "symmetric" if settings.get("sym") else "zero-point"
    return Layout(format, bits, 0 if size == -1 else size, grid)


def _compressed_tensors_layout(settings: Mapping[str, Any]) -> Layout:
    groups = [*settings["config_groups"].values()]
    formats = {settings.get("format"), *(group.get("format") for group in groups)} - {None}
    types = {group["weights"].get("type", "int") for group in groups}
    if formats != {"pack-quantized"} or types != {"int"}:
        raise ValueError(f"format {sorted(map(str, formats))}")
    default, *exceptions = (_group(group) for group in groups)
    sizes = default.bits, default.group_size, default.grid
    return Layout("compressed-tensors", *sizes, _checked_groups(exceptions))


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
    """Return the tensor headers of the dense model, with one weight for each packed layer.

    Args:
        spec: the model spec, for errors.
        packing: the quantization settings.
        config: config.json.
        tensors: tensor headers of the packed model.
        shapes: shapes [out, in] stored in the file, by layer. They are needed where the last word
            of a row is padded.

    Raises:
        ModelError: the tensors of a layer do not fit together, or no layer is packed.
    """
    parts, dense = PARTS[packing.method], dict[str, TensorHeader]()
    stores_in_out = str(config.get("model_type", "")) in IN_OUT
    for name, header in tensors.items():
        layer, _, part = name.rpartition(".")
        if part not in parts:
            dense[name] = header
        elif part == parts[0]:
            shape = _dense_shape(spec, layer, packing.of(layer), tensors)
            match shapes.get(layer):
                case (rows, columns) if rows == shape[0] and 0 < columns <= shape[1]:
                    shape = rows, columns
            dtype = tensors[f"{layer}.{SCALES[packing.method]}"].dtype
            is_in_out = stores_in_out and layer not in EMBEDDINGS_AND_HEADS
            dense[f"{layer}.weight"] = TensorHeader(shape[::-1] if is_in_out else shape, dtype)
    if len(dense) == len(tensors):
        why = f"Its config specifies {packing}, but no layer is packed in this way."
        raise refused(spec, why, REMEDY)
    return dense


def packed_layers(folder: Path) -> set[str]:
    """Return the full names of the packed layers in a folder."""
    code_tensors = {parts[0] for parts in PARTS.values()}
    names = (name.rpartition(".") for name in read_headers(folder))
    return {layer for layer, _, part in names if part in code_tensors}


def rounded_share(tensors: Mapping[str, TensorHeader], dense: Mapping[str, TensorHeader]) -> float:
    """Return the share of the weights of the `dense` model that are packed in `tensors`."""
    packed = sum(header.elements for name, header in dense.items() if name not in tensors)
    return packed / sum(header.elements for header in dense.values())


def _dense_shape(
    spec: str, layer: str, packing: Layout, tensors: Mapping[str, TensorHeader]
) -> tuple[int, int]:
    """Return the shape [out, in] of a packed layer, from the shapes of its tensors."""
    codes = tensors[f"{layer}.{PARTS[packing.method][0]}"].shape
    scales = tensors.get(f"{layer}.{SCALES[packing.method]}")
    if len(codes) != 2 or scales is None or len(scales.shape) != 2:
        raise refused(spec, f"The packed tensors of {layer} do not fit together.", REMEDY)
    if packing.method == "gptq":
        return codes[1], codes[0] * WORD_BITS // packing.bits
    if packing.method == "awq":
        return codes[1] * WORD_BITS // packing.bits, codes[0]
    columns = scales.shape[1] * packing.group_size or codes[1] * WORD_BITS // packing.bits
    return codes[0], columns
