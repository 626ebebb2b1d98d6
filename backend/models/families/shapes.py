"""Matrices of a model: their shapes, and where a checkpoint keeps them. Does not import torch."""

import re
from dataclasses import dataclass, field
from math import prod


@dataclass(frozen=True)
class TensorHeader:
    """Shape of one stored tensor, and its dtype as safetensors spells it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)  # of F32, BF16, I64, F8_E4M3; BOOL has none
        return self.elements * int(bits[0]) // 8 if bits else self.elements


@dataclass(frozen=True)
class StoredMatrix:
    """Where a checkpoint keeps a matrix [out, in]."""

    names: tuple[str, ...]  # of the tensors, stacked along `out`
    # index into the first dimension of a three-dimensional tensor; None: a matrix
    expert: int | None = None
    transposed: bool = False  # whether it is stored as [in, out]


@dataclass(frozen=True)
class LinearShape:
    """A weight matrix: `name` as in `model.named_modules()`, [rows = out, columns = in]."""

    name: str
    block: int
    module: str
    rows: int
    columns: int
    # where the checkpoint keeps it; two checkpoints of one model may differ in that
    stored: StoredMatrix = field(default=StoredMatrix(()), compare=False, repr=False)

    @property
    def weights(self) -> int:
        return self.rows * self.columns
