"""Group-wise integer quantization of linear layers.

    config, plan    settings of a run; bits, grid and quantizers of each layer
    grid            codes, group scales and zero-points of a layer
    range_search    search for scales and zero-points (`@range_search`); embedding and head
    rounding, gptq, hqq, awq, rotation  post-training quantizers (`@quantizer`)
    bases           scaling and rotation of inputs and outputs before rounding
    packed_linear   linear layer with codes for the native decoder
    registry        both decorators and their interfaces

To add a range search or a quantizer, define a decorated function in a file of this folder or in a
module listed in SLIMSCOPE_PLUGINS. Does not import torch.
"""

from typing import Literal

from backend.registry import Declarations

GridType = Literal["symmetric", "zero-point", "offset"]
GRID_NAMES: dict[GridType, str] = {
    "symmetric": "symmetric grid",
    "zero-point": "grid with zero-points",
    "offset": "grid with real offsets",
}
DECLARED_RANGE_SEARCHES = Declarations("range_search", __name__)
DECLARED_QUANTIZERS = Declarations("quantizer", __name__)
