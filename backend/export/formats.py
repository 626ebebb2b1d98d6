"""Formats of saved quantized models and their limitations. Does not import torch.

compressed-tensors   pack-quantized. Symmetric: plain transformers loads it, bit-identical.
                     Asymmetric: only with CompressedTensorsConfig(dequantize=True).
gptq, gptq_v2        for programs with GPTQ kernels; gptq stores z - 1, so z = 0 is impossible
slimscope            ours, for grids with real offsets, and for an embedding and a head with other
                     bits than the layers. Only Slimscope reads it; it can be exported as GGUF.
dense                weights at grid values, in the dtype of the base model; every program loads it,
                     without a gain in size
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from backend.errors import ConfigError, ModelError
from backend.models.families.stored import tensor_name
from backend.models.memory import WEIGHT_BYTES
from backend.models.sources.headers import read_config
from backend.models.sources.quantized import WORD_BITS, PackedGroup, parse_layout
from backend.models.sources.quantized import Format as Format
from backend.models.sources.quantized import Layout as Layout
from backend.quantization import GridType
from backend.quantization.plan import QuantizationPlan

FORMATS: tuple[Format, ...] = get_args(Format)
GPTQ_BITS = (2, 3, 4, 8)
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class ExportRequirements:
    """Properties of a quantized model that a format must support.

    Attributes:
        bits: bits of the linears.
        grid: type of the grid.
        scale_dtype: dtype of the scales.
        in_out: True if the architecture stores weights as [in, out] (GPT-2's Conv1D).
        all_quantized: True if all linears of the blocks are quantized.
        shapes: (out, in) of the quantized linears.
        experts: quantization of the experts; see `experts_of`.
        architecture: class of the model.
        embedding: bits of a quantized embedding; 0 if it is not quantized.
        uniform_embedding: True if the embedding has the settings of the linears.
        head: bits of a quantized head that is not tied to the embedding; 0 without one.
    """

    bits: int
    grid: GridType
    scale_dtype: str
    in_out: bool
    all_quantized: bool
    shapes: frozenset[tuple[int, int]]
    experts: Literal["", "alike", "unlike", "fused"] = ""
    architecture: str = ""
    embedding: int = 0
    uniform_embedding: bool = False
    head: int = 0


def experts_of(
    separate: bool, linears: Collection[str], common: Collection[str], special: Collection[str]
) -> Literal["", "alike", "unlike", "fused"]:
    """Classify the quantization of a model's experts.

    Args:
        separate: True if a checkpoint can store each expert separately.
        linears: names of all matrices of the blocks.
        common: names of the quantized layers with the most common settings.
        special: names of the other quantized layers.

    Returns:
        "" if no expert is quantized, "fused" if the experts of a block cannot be stored separately,
        "alike" if all experts of a block have the most common settings, or "unlike".
    """
    experts = {name for name in linears if tensor_name(name) != name}
    if experts.isdisjoint({*common, *special}):
        return ""
    if not separate:
        return "fused"
    packed = {tensor_name(name) for name in experts.intersection(common)}
    unpacked = {tensor_name(name) for name in experts.difference(common)}
    return "alike" if experts.isdisjoint(special) and packed.isdisjoint(unpacked) else "unlike"


def read_layout(folder: Path) -> Layout:
    """Read the quantization settings in the folder's config.json.

    Raises:
        ModelError: there are none, or they are not supported.
    """
    if layout := parse_layout(str(folder), read_config(folder)):
        return layout
    raise unreadable(folder, "Its config.json has no quantization_config.")


def layout_of(planned: QuantizationPlan, format: Format) -> Layout:
    """Return the layout of the saved model: the most common settings, and those of other layers.

    Raises:
        ConfigError: layers differ in bits, group size or grid, and the format does not support it.
    """
    common, *special = sorted(planned.groups, key=lambda group: -len(group.layers))
    settings = (common.bits, common.group_size, common.grid)
    if special and format in ("gptq", "gptq_v2"):
        raise ConfigError(
            f"The model cannot be saved as {format}.",
            "Its layers differ in bits or group size. This format supports only one setting.",
            "Choose compressed-tensors, slimscope or dense.",
            "format",
        )
    embedding = planned.embedding
    if embedding and (embedding.bits, embedding.group_size, embedding.grid) != settings:
        special.append(embedding)
    packed = (PackedGroup(x.layers, x.bits, x.group_size, x.grid) for x in special)
    return Layout(format, *settings, tuple(packed))


def unreadable(folder: Path, why: str) -> ModelError:
    """Return the error for packed weights that cannot be read."""
    return ModelError(
        f"The packed weights in {'/'.join(folder.parts[-2:])} cannot be read.",
        why,
        "Choose a complete model folder.",
        field="model",
    )


def obstacle(format: Format, requirements: ExportRequirements) -> str:
    """Return the reason why a format does not support the model, or ""."""
    if format == "dense":
        return _embedding_obstacle(format, requirements)
    if requirements.experts == "fused":
        return "transformers loads all experts of a block as one tensor, which it cannot unpack"
    if requirements.experts == "unlike":
        return "the experts of a block are unpacked together, and these are not quantized alike"
    if requirements.experts and format == "compressed-tensors" and requirements.grid != "symmetric":
        return "transformers unpacks experts without their zero-points"
    if why := _embedding_obstacle(format, requirements):
        return why
    if requirements.architecture.startswith(
        "GPTBigCode"
    ):  # it touches weights that packed layers lack
        return "transformers cannot load packed weights of this architecture"
    if requirements.grid == "offset" and format != "slimscope":
        return "its zero-points are whole numbers, but those of this grid are real"
    if format == "compressed-tensors" and requirements.in_out:
        return "it supports only nn.Linear, but this architecture has transposed layers"
    if format not in ("gptq", "gptq_v2"):
        return ""
    if requirements.bits not in GPTQ_BITS:
        return f"it supports {', '.join(map(str, GPTQ_BITS))} bits, not {requirements.bits}"
    if format == "gptq" and requirements.grid != "symmetric":
        return "it cannot store a zero-point of 0, but gptq_v2 can"
    if requirements.scale_dtype != "float16":
        return f"it stores scales in float16, not {requirements.scale_dtype}"
    if not requirements.all_quantized:
        return "it cannot leave single layers of a block dense"
    for rows, columns in sorted(requirements.shapes):
        if rows % WORD_BITS or columns % WORD_BITS:
            return (
                f"a layer of {rows} × {columns} is not a multiple of {WORD_BITS} in both dimensions"
            )
    return ""


def _embedding_obstacle(format: Format, requirements: ExportRequirements) -> str:
    """Return the reason why a format cannot store the quantized embedding or head, or ""."""
    if not requirements.embedding and not requirements.head:
        return ""
    if format == "dense":
        return "it stores every weight in 16 or 32 bits, including the embedding"
    if format in ("gptq", "gptq_v2"):
        return "its kernels support quantized linear layers, but no quantized embedding"
    if (
        format == "compressed-tensors"
        and requirements.embedding
        and not requirements.uniform_embedding
    ):
        return (
            "transformers requires a quantized embedding to have the group size, the grid and the "
            f"{requirements.bits} bits of the layers"
        )
    return ""


def check_format(format: Format, requirements: ExportRequirements) -> None:
    """Raise `ConfigError` if the format does not support the model. The message names formats that
    do."""
    if why := obstacle(format, requirements):
        without_embedding = replace(requirements, embedding=0, head=0)
        possible = [name for name in FORMATS if not obstacle(name, requirements)]
        possible = possible or [name for name in FORMATS if not obstacle(name, without_embedding)]
        *first, last = possible
        choices = f"{', '.join(first)} or {last}" if first else last
        do, field = f"Choose {choices}.", "format"
        what = f"The format {format} does not support this model."
        if not obstacle(format, without_embedding):
            what = f"The format {format} cannot store this embedding and head."
            do, field = f"Choose dense, or the format {last}.", "embedding"
        raise ConfigError(what, f"{why[0].upper()}{why[1:]}.", do, field=field)


def bits_per_weight(bits: int, group_size: int, grid: GridType, scale_dtype: str) -> float:
    """Return the stored bits per quantized weight, including scales and zero-points or offsets."""
    scale = 8 * WEIGHT_BYTES[scale_dtype]
    zero = {"symmetric": 0, "zero-point": bits, "offset": scale}[grid]
    return bits + (scale + zero) / group_size


def vllm_hint(bits: int, modules: Iterable[str]) -> str:
    """Return the reason why vLLM cannot run a compressed-tensors export, or "" if no reason is
    known. `modules`: full names of the quantized linears."""
    if bits not in (4, 8):
        return f"vLLM cannot load {bits}-bit models (4 bits: yes; 8 bits: on a GPU)."
    names = set(modules)
    for name in names:
        path, _, last = name.rpartition(".")
        fused = next((group for group in FUSED if last in group), ())
        if not all(f"{path}.{module}" in names for module in fused):
            return f"vLLM fuses {', '.join(fused)}: quantize all of them or none."
    return "On a CPU vLLM loads only 4-bit models." if bits != 4 else ""
