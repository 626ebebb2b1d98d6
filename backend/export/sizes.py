"""Bytes of the weights that a run saves, known before it starts. Does not import torch.

Matrices count with their scales and zero-points. Norms and biases are few: their number is a guess,
of their headers alone.
"""

from backend.export.formats import Layout, bits_per_weight
from backend.export.gguf.types import carried_type
from backend.models.facts import ModelFacts
from backend.models.families.stored import LinearShape
from backend.models.memory import WEIGHT_BYTES
from backend.printable import readable_bytes
from backend.quantization.plan import QuantizationPlan, QuantSettings

GGUF_BITS = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q4_1": 5.0,
    "Q4_0": 4.5,
}
HEADER_BYTES = 108  # of a tensor in a safetensors file
PARTS, VECTORS = 3, 3  # tensors of a packed matrix; norms and biases of a block
TOKEN_BYTES = 36  # of a token in the vocabulary of a GGUF file, with its merge (of SmolLM2)


def dense_bytes(facts: ModelFacts) -> int:
    """Of a folder in the precision of the base model's files."""
    header = HEADER_BYTES * (len(facts.matrices) + VECTORS * facts.blocks)
    return header + facts.parameters * WEIGHT_BYTES[facts.saved_dtype]


def quantized_bytes(facts: ModelFacts, plan: QuantizationPlan, format: str, stored: str) -> int:
    """Of a folder that holds the layers of a plan in a format, all else as `stored`."""
    if format == "dense":
        return dense_bytes(facts)
    settings: dict[str, QuantSettings | None] = {**plan.layers}
    if own := plan.embedding:
        settings |= dict.fromkeys(own.layers, own)
    rest, bits = facts.parameters, 0.0
    for x in (*facts.linears, *facts.embeddings):
        if of := settings.get(x.name):
            size = of.group_size or x.columns
            bits += x.weights * bits_per_weight(of.bits, size, of.grid, stored)
            if format in ("gptq", "gptq_v2"):  # a group for each input, zero-points on every grid
                bits += 32 * x.columns + (of.grid == "symmetric") * of.bits * x.weights / size
            rest -= x.weights
    packed = sum(map(bool, settings.values()))
    header = HEADER_BYTES * (PARTS * packed + VECTORS * facts.blocks)
    return header + int(bits / 8) + rest * WEIGHT_BYTES[stored]


def gguf_bytes(facts: ModelFacts, type: str, embedding: str, layout: Layout | None = None) -> int:
    """Of a GGUF file whose linear layers, and embedding and head, have these types. `layout`: of a
    model whose layers hold codes; where their widths differ, each takes the smallest type."""

    def of(x: LinearShape) -> str:
        if layout is None or len(layout.linears) == 1:
            return type
        return carried_type(type, layout.of(x.name), x.columns)

    bits = {x: GGUF_BITS[of(x)] for x in facts.linears} | dict.fromkeys(
        facts.embeddings, GGUF_BITS[embedding]
    )
    rest = facts.parameters - sum(x.weights for x in bits)
    matrices = sum(x.weights * each for x, each in bits.items())
    return int(matrices / 8) + 4 * rest + TOKEN_BYTES * facts.vocabulary


ROUNDING = 0.01  # of a size; what differs by less is called as large


def growth(source: int, saved: int, do: str) -> str:
    """What to know of a file that will be larger than what it is made of; else empty. `do`: what
    makes it smaller."""
    if not source or saved <= source * (1 + ROUNDING):
        return ""
    return (
        f"The saved model will be larger than the file of its source: {readable_bytes(saved)} "
        f"instead of {readable_bytes(source)}. {do}"
    )
