"""Types of weights in GGUF files and their limitations. Does not import torch.

    F32, F16, BF16   w
    Q8_0             d q        q in -128 .. 127
    Q4_0             d (q - 8)  q in 0 .. 15
    Q4_1             d q + m    q in 0 .. 15
    Q6_K             d c (q - 32)  q in 0 .. 63, c an integer

32 weights of a row share d and m, both float16. In Q6_K, used only for embedding and head, 16
weights share c and 256 share d.

The codes of a quantized model, w = s (c - z), are copied: d = s, q = c - z, and m = -s z for Q4_1.
Only m is rounded, and only if z is an integer, because offsets are float16 numbers already. A group
of the model may span several blocks.
"""

from typing import Literal

from backend.errors import ConfigError
from backend.export.formats import Layout

GGUFType = Literal["auto", "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
EmbeddingType = Literal["auto", "F16", "Q8_0", "Q6_K", "Q4_0"]
FLOATS = ("F32", "F16", "BF16")
PACKED = ("Q4_0", "Q4_1", "Q8_0")  # smallest first
BLOCK = 32  # weights
SUPER_BLOCK = 256  # weights, in Q6_K


def obstacle(type: str, layout: Layout) -> str:
    """Return the reason why `type` cannot store the codes of a quantized model, or ""."""
    if layout.group_size % BLOCK:
        return f"its blocks of {BLOCK} weights do not fit into groups of {layout.group_size}"
    if type in ("F16", "BF16"):
        return "it would round the quantized weights once more"
    if type in ("Q4_0", "Q4_1") and layout.bits > 4:
        return f"it holds 4 bits, not {layout.bits}"
    if type == "Q4_0" and layout.grid != "symmetric":
        return "its grid is symmetric, but the model's is not"
    if type == "Q8_0" and layout.grid == "offset":
        return "it has no offsets"
    if type == "Q8_0" and layout.bits == 8 and layout.grid != "symmetric":
        return "8-bit codes minus their zero-point need 9 bits"
    return ""


def choose_type(requested: GGUFType, layout: Layout | None, dtype: str) -> str:
    """Return the type of the linear layers; the largest one if they differ.

    Args:
        requested: type in the config.
        layout: layout of a quantized model; None for plain weights.
        dtype: dtype of plain weights.

    Raises:
        ConfigError: the type cannot store the model; the message names types that can.
    """
    if layout is None:
        if requested != "auto":
            return requested
        return "BF16" if dtype == "bfloat16" else "F16"

    def first_obstacle(type: str) -> str:
        return next(filter(None, (obstacle(type, linear) for linear in layout.linears)), "")

    suitable = [type for type in (*PACKED, "F32") if not first_obstacle(type)]
    if requested == "auto" and suitable:
        return suitable[0]
    if requested in suitable:
        return requested
    type = PACKED[0] if requested == "auto" else requested
    why = first_obstacle(type)
    raise ConfigError(
        f"{type} cannot store this model.",
        f"{why[0].upper()}{why[1:]}.",
        f"Choose {' or '.join(suitable)}."
        if suitable
        else f"Quantize with a group size that is a multiple of {BLOCK}.",
        field="type",
    )


def embedding_type(requested: EmbeddingType, linears: str, packed: bool, dtype: str) -> str:
    """Return the type of an embedding or head that is not quantized.

    Args:
        requested: type in the config.
        linears: type of the linear layers.
        packed: True if the linear layers have codes. The embedding then keeps its dtype.
        dtype: dtype of the embedding.
    """
    if requested != "auto":
        return requested
    if packed:
        return {"float16": "F16", "bfloat16": "BF16"}.get(dtype, "F32")
    return linears if linears in FLOATS else "Q8_0"


def fitting(type: str, columns: int) -> str:
    """Return `type`, or the next larger type whose blocks divide rows of `columns` weights."""
    if type == "Q6_K" and columns % SUPER_BLOCK:
        type = "Q8_0"
    return "F16" if type not in FLOATS and columns % BLOCK else type


def type_for_codes(linears: str, layout: Layout, columns: int) -> str:
    """Return the smallest type that can store the codes of a layer. Whether Q6_K can store its
    scales is not checked.

    Args:
        linears: type of the linear layers; F32 is used for all layers.
        layout: settings of the layer.
        columns: inputs of the layer.
    """
    size = layout.group_size or columns
    if linears == "F32" or size % BLOCK:
        return "F32"
    if layout.bits == 6 and layout.grid == "symmetric" and not columns % SUPER_BLOCK:
        return "Q6_K"
    return next((type for type in PACKED if not obstacle(type, layout)), "F32")
