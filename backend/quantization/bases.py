"""Change of basis of a layer's inputs and outputs before rounding. It does not change the result:

    y = W x,   x' = R^T (x / t),   W' = O^T W diag(t) R,   y = O W' x'

with t not 0, and R and O orthogonal. Only W' is rounded. `Basis.back` returns the weights that the
rounded W' represents, so a stage is measured in the unchanged model. Neighboring weights could
absorb t, R and O: norms and the rows of `v_proj` and `up_proj` absorb t; embeddings, head and the
layers that write to the residual stream absorb R and O.

Both quantizers that change the basis support only blocks with the structure of LLaMA's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from backend.quantization.plan import require_llama_blocks


@dataclass(frozen=True)
class Basis:
    """Basis of the inputs and outputs of a layer. The plain basis does not change the layer.

    Attributes:
        scale: t [in]; None for ones.
        inputs: number of neighboring inputs that R rotates together; 0 if R is the identity.
        outputs: the same for O.
    """

    scale: Tensor | None = None
    inputs: int = 0
    outputs: int = 0

    @property
    def plain(self) -> bool:
        """True if the basis does not change the layer."""
        return self.scale is None and not self.inputs and not self.outputs

    def into(self, W: Tensor) -> Tensor:
        """Return W' [out, in] of `W`, float32."""
        W = W if self.scale is None else W * self.scale
        return _rotated(_rotated(W, self.inputs).T, self.outputs).T.contiguous()

    def back(self, W: Tensor) -> Tensor:
        """Return the weights [out, in] that W' represents, float32."""
        W = _rotated(_rotated(W, self.inputs, back=True).T, self.outputs, back=True).T.contiguous()
        return W if self.scale is None else W / self.scale

    def gram(self, H: Tensor) -> Tensor:
        """Return the second moments [in, in] of x', given those of x."""
        H = H if self.scale is None else H / torch.outer(self.scale, self.scale)
        return _rotated(_rotated(H, self.inputs).T, self.inputs).T.contiguous()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store; none for the plain basis."""
        if self.plain:
            return {}
        sizes = {"rotated": torch.tensor([self.inputs, self.outputs])}
        # cloned, because tensors in a safetensors file must not share memory
        return sizes if self.scale is None else sizes | {"input_scale": self.scale.clone()}


PLAIN = Basis()


def basis_from(tensors: Mapping[str, Tensor]) -> Basis:
    """Build the basis from the stored tensors of a layer."""
    if "rotated" not in tensors:
        return PLAIN
    inputs, outputs = tensors["rotated"].tolist()
    return Basis(tensors.get("input_scale"), inputs, outputs)


def _rotated(W: Tensor, size: int, back: bool = False) -> Tensor:
    """Return `W` [rows, columns] with every `size` neighboring columns multiplied by R, or R^T."""
    if not size:
        return W
    R = rotation(size).to(W)
    return (W.reshape(-1, size) @ (R.T if back else R)).view(W.shape)


@lru_cache(16)
def rotation(size: int) -> Tensor:
    """Return R [size, size], orthogonal, float32: random signs, a Hadamard matrix of the largest
    power of two that divides the size, and a random rotation for the odd factor."""
    power = size & -size
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < power:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)]) / 2**0.5
    random = torch.Generator().manual_seed(0)
    odd = torch.randn(size // power, size // power, generator=random, dtype=torch.float64)
    signs = torch.randint(0, 2, (size, 1), generator=random) * 2 - 1
    return (signs * torch.kron(torch.linalg.qr(odd).Q.contiguous(), H)).float()


def require_llama(block: nn.Module, modules: Mapping[str, Any], method: str) -> None:
    """Raise `ConfigError` unless the block has the structure of LLaMA's. `modules` has the names of
    the layers to quantize within the block."""
    norm = type(getattr(block, "input_layernorm", None)).__name__
    require_llama_blocks(method, norm, modules, (name for name, _ in block.named_children()))
