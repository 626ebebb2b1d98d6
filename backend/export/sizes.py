"""Predicted size of the model that a run saves. Does not import torch.

Matrices count with their scales and zero-points. The number of norms and biases is an estimate, and
only affects the size of file headers.
"""

from backend.export.formats import Layout, bits_per_weight
from backend.export.gguf.types import type_for_codes
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
HEADER_BYTES = 108  # header of a tensor in a safetensors file
PARTS, VECTORS = 3, 3  # tensors of a packed matrix; norms and biases of a block
TOKEN_BYTES = 36  # a token with its merge in the vocabulary of a GGUF file, as in SmolLM2
ROUNDING = 0.01  # sizes that differ by a smaller share count as equal


def dense_bytes(facts: ModelFacts) -> int:
    """Return the bytes of a model folder in the precision of the base model's files."""
    header = HEADER_BYTES * (len(facts.matrices) + VECTORS * facts.blocks)
    return header + facts.parameters * WEIGHT_BYTES[facts.saved_dtype]


def quantized_bytes(facts: ModelFacts, plan: QuantizationPlan, format: str, dtype: str) -> int:
    """Return the bytes of a model folder in an export format. Tensors that are not quantized have
    the dtype `dtype`."""
    if format == "dense":
        return dense_bytes(facts)
    layers: dict[str, QuantSettings | None] = {**plan.layers}
    if plan.embedding:
        layers |= dict.fromkeys(plan.embedding.layers, plan.embedding)
    unquantized, bits = facts.parameters, 0.0
    for x in (*facts.linears, *facts.embeddings):
        if settings := layers.get(x.name):
            size = settings.group_size or x.columns
            bits += x.weights * bits_per_weight(settings.bits, size, settings.grid, dtype)
            if format in ("gptq", "gptq_v2"):
                # these store the group of each input, and zero-points of a symmetric grid as well
                bits += 32 * x.columns
                bits += (settings.grid == "symmetric") * settings.bits * x.weights / size
            unquantized -= x.weights
    packed = sum(map(bool, layers.values()))
    header = HEADER_BYTES * (PARTS * packed + VECTORS * facts.blocks)
    return header + int(bits / 8) + unquantized * WEIGHT_BYTES[dtype]


def gguf_bytes(facts: ModelFacts, type: str, embedding: str, layout: Layout | None = None) -> int:
    """Return the bytes of a GGUF file.

    Args:
        type: type of the linear layers.
        embedding: type of embedding and head.
        layout: layout of a quantized model. If the widths of its layers differ, each layer gets the
            smallest type that holds its codes.
    """

    def linear_type(x: LinearShape) -> str:
        if layout is None or len(layout.linears) == 1:
            return type
        return type_for_codes(type, layout.of(x.name), x.columns)

    bits = {x: GGUF_BITS[linear_type(x)] for x in facts.linears}
    bits |= dict.fromkeys(facts.embeddings, GGUF_BITS[embedding])
    vector_weights = facts.parameters - sum(x.weights for x in bits)
    matrix_bits = sum(x.weights * weight_bits for x, weight_bits in bits.items())
    return int(matrix_bits / 8) + 4 * vector_weights + TOKEN_BYTES * facts.vocabulary


def growth_warning(source: int, saved: int, do: str) -> str:
    """Return a warning if the saved model will be larger than the file of its source, otherwise "".
    `do`: advice how to make it smaller."""
    if not source or saved <= source * (1 + ROUNDING):
        return ""
    return (
        f"The saved model will be larger than the file of its source: {readable_bytes(saved)} "
        f"instead of {readable_bytes(source)}. {do}"
    )
