"""Formats of saved quantized models and their limitations. Does not import torch.

compressed-tensors   pack-quantized. Symmetric: plain transformers loads it, bit-identical.
                     Asymmetric: only with CompressedTensorsConfig(dequantize=True).
gptq, gptq_v2        for programs with GPTQ kernels; gptq stores z - 1, so z = 0 is impossible
slimscope            ours, for grids with real offsets, and for an embedding and a head in other
                     bits: Slimscope alone reads it, decodes it, and exports it as GGUF
dense                weights at grid values, in the dtype of the base model: for every program, no
                     gain in size
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from backend.errors import ConfigError, ModelError
from backend.models.families.stored import together
from backend.models.memory import WEIGHT_BYTES
from backend.models.sources.headers import read_config
from backend.models.sources.quantized import WORD_BITS, PackedGroup, layout_in
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
        stored: dtype of the scales.
        in_out: the architecture stores weights as [in, out] (GPT-2's Conv1D).
        whole: all linears of the blocks are quantized; shapes: (out, in) of those.
        experts: of those; see `experts_of`.
        embedding: bits of a quantized embedding; alike: it is quantized as the linears are.
        head: bits of a quantized head that is not tied to it.
    """

    bits: int
    grid: GridType
    stored: str
    in_out: bool
    whole: bool
    shapes: frozenset[tuple[int, int]]
    experts: Literal["", "alike", "unlike", "fused"] = ""
    architecture: str = ""
    embedding: int = 0
    alike: bool = False
    head: int = 0


def experts_of(
    separate: bool, linears: Collection[str], most: Collection[str], others: Collection[str]
) -> Literal["", "alike", "unlike", "fused"]:
    """Whether experts of a mixture are quantized ("" if none is), all of a block alike, and whether
    a checkpoint can hold each by itself (`separate`). `linears`: names of all matrices of the
    blocks; `most`, `others`: of those with the settings of most layers, and with their own."""
    experts = {name for name in linears if together(name) != name}
    if experts.isdisjoint({*most, *others}):
        return ""
    if not separate:
        return "fused"
    packed = {together(name) for name in experts.intersection(most)}
    rest = {together(name) for name in experts.difference(most)}
    return "alike" if experts.isdisjoint(others) and packed.isdisjoint(rest) else "unlike"


def read_layout(folder: Path) -> Layout:
    """The quantization settings in the folder's config.json; `ModelError` without any of ours."""
    if layout := layout_in(str(folder), read_config(folder)):
        return layout
    raise unreadable(folder, "Its config.json has no quantization_config.")


def layout_of(planned: QuantizationPlan, format: Format) -> Layout:
    """The layout of the saved model: the settings that most layers have, and those of others.
    Raises ConfigError: layers differ in bits, group size or grid, which the format cannot hold."""
    most, *others = sorted(planned.groups, key=lambda group: -len(group.layers))
    first = (most.bits, most.group_size, most.grid)
    if others and format in ("gptq", "gptq_v2"):
        raise ConfigError(
            f"The model cannot be saved as {format}.",
            "Its layers differ in bits or group size; a file in this format has one of each.",
            "Choose compressed-tensors, slimscope or dense.",
            "format",
        )
    own = planned.embedding
    groups = [*others, *([own] if own and (own.bits, own.group_size, own.grid) != first else [])]
    packed = (PackedGroup(x.layers, x.bits, x.group_size, x.grid) for x in groups)
    return Layout(format, *first, tuple(packed))


def unreadable(folder: Path, why: str) -> ModelError:
    """The error for packed weights that cannot be read."""
    return ModelError(
        f"The packed weights in {'/'.join(folder.parts[-2:])} cannot be read.",
        why,
        "Choose a complete model folder.",
        field="model",
    )


def obstacle(format: Format, choice: ExportRequirements) -> str:
    """The reason why `format` cannot store `choice`; empty if it can."""
    if format == "dense":
        return _embedding_obstacle(format, choice)
    if choice.experts == "fused":
        return "transformers loads all experts of a block as one tensor, which it cannot unpack"
    if choice.experts == "unlike":
        return "the experts of a block are unpacked together, and these are not quantized alike"
    if choice.experts and format == "compressed-tensors" and choice.grid != "symmetric":
        return "transformers unpacks experts without their zero-points"
    if why := _embedding_obstacle(format, choice):
        return why
    if choice.architecture.startswith("GPTBigCode"):  # it touches weights that packed layers lack
        return "transformers cannot load packed weights of this architecture"
    if choice.grid == "offset" and format != "slimscope":
        return "its zero-points are whole numbers, and those of this grid are real"
    if format == "compressed-tensors" and choice.in_out:
        return "it supports nn.Linear only, and this architecture has transposed layers"
    if format not in ("gptq", "gptq_v2"):
        return ""
    if choice.bits not in GPTQ_BITS:
        return f"it supports {', '.join(map(str, GPTQ_BITS))} bits, not {choice.bits}"
    if format == "gptq" and choice.grid != "symmetric":
        return "it cannot express a zero-point of 0; gptq_v2 can"
    if choice.stored != "float16":
        return f"it stores scales in float16, not {choice.stored}"
    if not choice.whole:
        return "it cannot leave single layers of a block dense"
    for rows, columns in sorted(choice.shapes):
        if rows % WORD_BITS or columns % WORD_BITS:
            return (
                f"a layer of {rows} × {columns} is not a multiple of {WORD_BITS} in both dimensions"
            )
    return ""


def _embedding_obstacle(format: Format, choice: ExportRequirements) -> str:
    """The reason why a format cannot store a quantized embedding or head; empty if it can."""
    if not choice.embedding and not choice.head:
        return ""
    if format == "dense":
        return "it stores every weight in 16 or 32 bits, the embedding too"
    if format in ("gptq", "gptq_v2"):
        return "kernels for it know quantized linear layers, but no quantized embedding"
    if format == "compressed-tensors" and choice.embedding and not choice.alike:
        return (
            f"transformers reads a quantized embedding only with the {choice.bits} bits, the group "
            "size and the grid of the layers"
        )
    return ""


def check_format(format: Format, choice: ExportRequirements) -> None:
    """Raise `ConfigError`, which names the formats that can, if this one cannot store the model."""
    if why := obstacle(format, choice):
        plain = replace(choice, embedding=0, head=0)
        possible = [each for each in FORMATS if not obstacle(each, choice)]
        *rest, last = possible or [each for each in FORMATS if not obstacle(each, plain)]
        do, field = f"Choose {', '.join(rest)} or {last}." if rest else f"Choose {last}.", "format"
        what = f"The format {format} does not support this model."
        if not obstacle(format, plain):
            what = f"The format {format} cannot store this embedding and head."
            do, field = f"Choose stored, or the format {last}.", "embedding"
        raise ConfigError(what, f"{why[0].upper()}{why[1:]}.", do, field=field)


def bits_per_weight(bits: int, group_size: int, grid: GridType, stored: str) -> float:
    """Stored bits per quantized weight, including scales and zero-points or offsets."""
    scale = 8 * WEIGHT_BYTES[stored]
    zero = {"symmetric": 0, "zero-point": bits, "offset": scale}[grid]
    return bits + (scale + zero) / group_size


def vllm_hint(bits: int, modules: Iterable[str]) -> str:
    """The reason why vLLM will not run a compressed-tensors export with these quantized linears
    (full names); empty if nothing is known against it."""
    if bits not in (4, 8):
        return f"vLLM cannot load {bits}-bit models (4 bits: yes; 8 bits: on a GPU)."
    names = set(modules)
    for name in names:
        path, _, last = name.rpartition(".")
        fused = next((group for group in FUSED if last in group), ())
        if not all(f"{path}.{each}" in names for each in fused):
            return f"vLLM fuses {', '.join(fused)}: quantize all of them or none."
    return "On a CPU vLLM loads 4-bit models only." if bits != 4 else ""
