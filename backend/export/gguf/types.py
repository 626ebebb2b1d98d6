"""Types of weights in GGUF files, and what they can hold. Does not import torch.

    F32, F16, BF16   w
    Q8_0             d q        q in -128 .. 127
    Q4_0             d (q - 8)  q in 0 .. 15
    Q4_1             d q + m    q in 0 .. 15

Of the last three, 32 weights of a row share d and m, both float16. The codes of a quantised model,
w = s (c - z), are carried over as they are: d = s, q = c - z, and for Q4_1 m = -s z, the only
number that is rounded, and that only where z is whole: offsets are float16 numbers as they are. A
group of the model may span several such blocks.
"""

from __future__ import annotations

from typing import Literal

from backend.errors import ConfigError
from backend.export.formats import Layout

GGUFType = Literal["auto", "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
FLOATS = ("F32", "F16", "BF16")
PACKED = ("Q4_0", "Q4_1", "Q8_0")  # the smallest first
BLOCK = 32
STORED = {"bfloat16": "BF16"}  # dtype of a plain model -> its type; else F16


def obstacle(type: str, layout: Layout) -> str:
    """The reason why `type` cannot hold the codes of a quantised model; empty if it can."""
    if layout.group_size % BLOCK:
        return f"its blocks of {BLOCK} weights do not fit into groups of {layout.group_size}"
    if type in ("F16", "BF16"):
        return "it would round the quantised weights once more"
    if type in ("Q4_0", "Q4_1") and layout.bits > 4:
        return f"it holds 4 bits, not {layout.bits}"
    if type == "Q4_0" and layout.grid != "symmetric":
        return "its grid is symmetric, and that of the model is not"
    if type == "Q8_0" and layout.grid == "offset":
        return "it has no offsets"
    if type == "Q8_0" and layout.bits == 8 and layout.grid != "symmetric":
        return "8-bit codes minus their zero-point need 9 bits"
    return ""


def choose_type(wanted: GGUFType, layout: Layout | None, dtype: str) -> str:
    """The type of the linear layers; `layout` of a quantised model; None for plain weights, stored
    as `dtype`. `ConfigError`, which names those that can, if it cannot hold the model."""
    if layout is None:
        return STORED.get(dtype, "F16") if wanted == "auto" else wanted
    suitable = [type for type in (*PACKED, "F32") if not obstacle(type, layout)]
    if wanted == "auto" and suitable:
        return suitable[0]
    if wanted in suitable:
        return wanted
    type = PACKED[0] if wanted == "auto" else wanted
    why = obstacle(type, layout)
    do = f"Choose {' or '.join(suitable)}." if suitable else f"Quantise in groups of {BLOCK} k."
    raise ConfigError(
        f"{type} cannot hold this model.", f"{why[0].upper()}{why[1:]}.", do, field="type"
    )
