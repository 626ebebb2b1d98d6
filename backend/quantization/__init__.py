"""Group-wise integer quantization of linear layers.

    grid            codes, scales and zero-points of a layer
    range_search    how scales and zero-points are found (`@range_search`)
    rounding, gptq  post-training quantizers (`@quantizer`)
    packed_linear   a linear layer on packed int4 or int8 weights
    registry        both decorators and the contracts behind them

To add a range search or a quantizer, write a file here, or a module named in SLIMSCOPE_PLUGINS,
with a decorated function. Does not import torch.
"""

from backend.registry import Declarations

DECLARED_RANGE_SEARCHES = Declarations("range_search", __name__)
DECLARED_QUANTIZERS = Declarations("quantizer", __name__)
