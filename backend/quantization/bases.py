"""Layers rounded in another basis of their inputs and outputs, which by itself changes nothing:

    y = W x,   x' = R^T (x / t),   W' = O^T W diag(t) R,   y = O W' x'

with t not 0, and R and O orthogonal. Only W' is rounded; `Basis.back` gives the weights that the
rounded W' stands for, so that a stage is measured in the model as it is. A model whose neighboring
weights take over t, R and O computes the same: norms and the rows of `v_proj` and `up_proj` take
over t, embeddings, head and the layers that write to the residual stream R and O.

Both quantizers that need one know the blocks of LLaMA and what is built like them.
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
    """See above. The plain one leaves a layer as it is.

    Attributes:
        scale: t [in]; None: ones.
        inputs: R rotates as many neighboring inputs at a time; 0: it is the identity.
        outputs: the same of O.
    """

    scale: Tensor | None = None
    inputs: int = 0
    outputs: int = 0

    @property
    def plain(self) -> bool:
        return self.scale is None and not self.inputs and not self.outputs

    def into(self, W: Tensor) -> Tensor:
        """W' of `W` [out, in], float32."""
        W = W if self.scale is None else W * self.scale
        return _rotated(_rotated(W, self.inputs).T, self.outputs).T.contiguous()

    def back(self, W: Tensor) -> Tensor:
        """The weights [out, in] of W' [out, in], float32."""
        W = _rotated(_rotated(W, self.inputs, back=True).T, self.outputs, back=True).T.contiguous()
        return W if self.scale is None else W / self.scale

    def gram(self, H: Tensor) -> Tensor:
        """Second moments [in, in] of x' from those of x."""
        H = H if self.scale is None else H / torch.outer(self.scale, self.scale)
        return _rotated(_rotated(H, self.inputs).T, self.inputs).T.contiguous()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store; none of the plain basis."""
        if self.plain:
            return {}
        sizes = {"rotated": torch.tensor([self.inputs, self.outputs])}
        # A copy, as layers that share a scale must not share its memory in a file.
        return sizes if self.scale is None else sizes | {"input_scale": self.scale.clone()}


PLAIN = Basis()


def basis_from(tensors: Mapping[str, Tensor]) -> Basis:
    """The basis among the stored tensors of a layer."""
    if "rotated" not in tensors:
        return PLAIN
    inputs, outputs = tensors["rotated"].tolist()
    return Basis(tensors.get("input_scale"), inputs, outputs)


def _rotated(W: Tensor, size: int, back: bool = False) -> Tensor:
    """`W` [rows, columns] with every `size` neighboring columns multiplied by R, or by R^T."""
    if not size:
        return W
    R = rotation(size).to(W)
    return (W.reshape(-1, size) @ (R.T if back else R)).view(W.shape)


@lru_cache(16)
def rotation(size: int) -> Tensor:
    """R [size, size], orthogonal, float32: random signs, then a Hadamard matrix of the largest
    power of two that divides the size, and a random rotation of what is left."""
    power = size & -size
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < power:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)]) / 2**0.5
    random = torch.Generator().manual_seed(0)
    odd = torch.randn(size // power, size // power, generator=random, dtype=torch.float64)
    signs = torch.randint(0, 2, (size, 1), generator=random) * 2 - 1
    return (signs * torch.kron(torch.linalg.qr(odd).Q.contiguous(), H)).float()


def require_llama(block: nn.Module, modules: Mapping[str, Any], method: str) -> None:
    """Raise `ConfigError` for a block that is not built like LLaMA's. `modules`: the layers to
    quantize, by their names in it."""
    norm = type(getattr(block, "input_layernorm", None)).__name__
    require_llama_blocks(method, norm, modules, (name for name, _ in block.named_children()))
