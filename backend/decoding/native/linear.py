"""Linear layers whose products `cpp/products.h` computes."""

import torch
from torch import Tensor, nn

from backend.decoding.native.compiler import NATIVE, library
from backend.decoding.native.weights import SPARSE, WeightLayout
from backend.quantization.packed_linear import PackedLinear

ALONE = 2**20  # weights that one thread multiplies before a second has started


class NativeLinear(nn.Module):
    """A linear [..., in] -> [..., out] in float32, of weights in 4 bits, 8 bits or bfloat16. Raises
    CompilerError: the decoder cannot be built here. ValueError: its inputs are no multiple of
    `LANES`.

    Args:
        target: compiler flags that choose the instructions.
        rounded: an `nn.Linear` is rounded to 8 bits.
        sparse: zeros are left out where that pays; the attribute says where they are.
    """

    def __init__(
        self,
        linear: nn.Linear | PackedLinear,
        target: tuple[str, ...] = NATIVE,
        rounded: bool = False,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        self._library = library(target)
        self._layout = WeightLayout(self._library, rounded, sparse)
        self._matrix = self._layout.matrix(linear)
        self.out_features = linear.out_features
        self.sparse = self._matrix.format in SPARSE
        self._large = self._matrix.outputs * self._matrix.inputs > ALONE

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self._matrix.inputs:
            raise ValueError(f"the inputs {[*x.shape]} are not {self._matrix.inputs} wide")
        rows = x.reshape(-1, self._matrix.inputs).float().contiguous()
        y = torch.empty(len(rows), self._matrix.outputs, dtype=torch.float32)
        threads = torch.get_num_threads() if self._large else 1
        places = self._matrix, rows.data_ptr(), y.data_ptr()
        if self._library.slimscope_linear(*places, len(rows), threads):
            raise MemoryError("The native decoder ran out of memory or threads.")
        return y[:, : self.out_features].view(*x.shape[:-1], -1)
