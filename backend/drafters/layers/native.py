"""The parts of a drafter on the kernels of `backend.decoding.native`, in 8 bits: a sequential
drafter for SmolLM2-135M accepts 1.59 tokens a pass in 8 bits and in float32, 1.50 in 4. In PyTorch
most of the time of its many small products goes to dispatch."""

from torch import Tensor, nn

from backend.decoding.native.blocks import NativeBlocks
from backend.decoding.native.cache import NativeCache
from backend.decoding.native.families import LANES
from backend.decoding.native.linear import NativeLinear
from backend.decoding.target_model import TargetModel
from backend.drafters.layers.adaptation import ClonedLayer


class NativeLayer(nn.Module):
    """A cloned layer: hidden states [1, n, d] -> [1, n, d] in float32, causal."""

    def __init__(self, layer: ClonedLayer, target: TargetModel) -> None:
        super().__init__()
        self._blocks = NativeBlocks(target.model, [layer.block], rounded=True)

    def new_cache(self, capacity: int) -> NativeCache:
        return self._blocks.new_cache(capacity)

    def forward(
        self,
        states: Tensor,
        cache: NativeCache | None = None,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Append the states to the cache; see `ClonedLayer.forward`. Cached rows are visible."""
        n = states.shape[1]
        places = None if positions is None else positions[0]
        own = None if visible is None else visible[0, :, -n:]
        return self._blocks(states[0], cache or self.new_cache(n), places, own)[None]


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of weights [out, in]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


def use_native(module: nn.Module, target: TargetModel) -> None:
    """Replace every cloned layer and linear inside, in place; the others compute in float32."""
    for name, part in list(module.named_modules()):
        if isinstance(part, ClonedLayer):
            module.set_submodule(name, NativeLayer(part, target))
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear) and not part.in_features % LANES:
            module.set_submodule(name, NativeLinear(part, rounded=True))
    module.float()
