"""The formats a quantised model is saved in, and what each cannot hold. Does not import torch.

compressed-tensors   pack-quantized. Symmetric: stock transformers loads it, bit for bit.
                     Not symmetric: only with CompressedTensorsConfig(dequantize=True).
gptq, gptq_v2        for programs with GPTQ kernels; gptq holds z - 1 and so no z of 0
dense                float32 weights that lie on the grid: every program, no gain in size
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from backend.errors import ConfigError

Format = Literal["compressed-tensors", "gptq", "gptq_v2", "dense"]
FORMATS: tuple[Format, ...] = ("compressed-tensors", "gptq", "gptq_v2", "dense")
GPTQ_BITS = (2, 3, 4, 8)
WORD = 32  # both sides of a GPTQ weight are a multiple of it


@dataclass(frozen=True)
class ExportRequirements:
    """What a format has to hold.

    Attributes:
        stored: precision of the scales.
        in_out: whether the architecture stores weights as [in, out] (GPT-2's Conv1D).
        whole: whether every linear of the blocks is quantised.
        shapes: (out, in) of the quantised linears.
    """

    bits: int
    symmetric: bool
    stored: str
    in_out: bool
    whole: bool
    shapes: frozenset[tuple[int, int]]


def obstacle(format: Format, choice: ExportRequirements) -> str:
    """Why `format` cannot hold `choice`; empty when it can."""
    if format == "compressed-tensors" and choice.in_out:
        return "it knows nn.Linear alone, and this architecture has transposed layers"
    if format not in ("gptq", "gptq_v2"):
        return ""
    if choice.bits not in GPTQ_BITS:
        return f"it holds {', '.join(map(str, GPTQ_BITS))} bits, not {choice.bits}"
    if format == "gptq" and not choice.symmetric:
        return "it cannot express a zero-point of 0; gptq_v2 can"
    if choice.stored != "float16":
        return f"its scales are float16, not {choice.stored}"
    if not choice.whole:
        return "it has no way to leave single layers of a block dense"
    odd = [shape for shape in sorted(choice.shapes) if shape[0] % WORD or shape[1] % WORD]
    if odd:
        return f"a layer of {odd[0][0]} × {odd[0][1]} is not a multiple of {WORD} on both sides"
    return ""


def refuse_unholdable(format: Format, choice: ExportRequirements) -> None:
    """Reject a format that cannot hold the choice.

    Raises:
        ConfigError: names the formats that can.
    """
    if why := obstacle(format, choice):
        able = [each for each in FORMATS if not obstacle(each, choice)]
        raise ConfigError(
            f"The format {format} cannot hold this model.",
            f"{why[0].upper()}{why[1:]}.",
            f"Choose {_listed(able)}.",
            field="format",
        )


def bits_per_weight(bits: int, group_size: int, symmetric: bool, stored: str) -> float:
    """Stored bits for each quantised weight: code, and a group's scale and zero-point."""
    scale = {"float16": 16, "bfloat16": 16, "float32": 32}[stored]
    return bits + (scale + (0 if symmetric else bits)) / group_size


def _listed(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last
