"""Size of the weights of a compressed model in sparse storage formats.

For a matrix of N weights, K of them nonzero, with 16-bit values:

    dense     2 N
    bitmask   2 K + N / 8                      one bit per weight marks nonzero values
    n:m       N n / m (2 + ceil(log2 m) / 8)   n values per group and their indices

The bitmask is smaller than dense if more than 1/16 of the weights are zeros. n:m stores n values of
every group, including zeros in groups with fewer nonzero values; 2:4 takes 2 index bits per value,
or 9/16 of the dense size. For a model, n is the number of nonzero values in its fullest group; the
model counts as n:m if at least `MIN_FILL` of the stored values are nonzero. Row indices, headers
and padding are not counted."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

VALUE_BYTES = 2
GROUPS = (4, 8)  # group sizes m to test for n:m
MIN_FILL = 0.9  # share of nonzero values below which the pattern may be coincidental


@dataclass(frozen=True)
class LinearSizes:
    """Storage sizes of the linears in a model's blocks, with 16-bit values.

    Attributes:
        weights: number of weights.
        nonzero: number of nonzero weights.
        dense: bytes without sparse storage.
        bitmask: bytes with a bitmask.
        compact: bytes in the smallest n:m format; None if the model is not n:m.
        pattern: (n, m) of that format.
    """

    weights: int
    nonzero: int
    dense: int
    bitmask: int
    compact: int | None
    pattern: tuple[int, int] | None

    @property
    def zero_share(self) -> float:
        """Share of zeros among the weights."""
        return 1 - self.nonzero / self.weights


def compact_bytes(weights: int, keep: int, group: int) -> int:
    """Bytes of an n:m matrix with n = `keep` and m = `group`: values and their indices."""
    values = weights // group * keep
    return VALUE_BYTES * values + -(-values * (group - 1).bit_length() // 8)


def sizes(matrices: Iterable[Tensor]) -> LinearSizes:
    """Total sizes of matrices [out, in]. The iterable may load them one at a time."""
    weights = nonzero = bitmask = 0
    max_nonzero = dict.fromkeys(GROUPS, 0)  # m -> n
    for W in matrices:
        count = int(torch.count_nonzero(W))
        weights, nonzero = weights + W.numel(), nonzero + count
        bitmask += VALUE_BYTES * count + -(-W.numel() // 8)
        max_nonzero = {m: max(n, max_nonzero_per_group(W, m)) for m, n in max_nonzero.items()}
    compact_sizes = {
        (n, m): compact_bytes(weights, n, m)
        for m, n in max_nonzero.items()
        if 0 < n < m and nonzero >= MIN_FILL * weights * n / m
    }
    pattern = min(compact_sizes, key=compact_sizes.__getitem__, default=None)
    compact = compact_sizes[pattern] if pattern else None
    return LinearSizes(weights, nonzero, VALUE_BYTES * weights, bitmask, compact, pattern)


def max_nonzero_per_group(W: Tensor, group: int) -> int:
    """Largest number of nonzero values in a group of `group` inputs of `W` [out, in].

    Returns `group` if the number of inputs is not a multiple of it."""
    if W.shape[1] % group:
        return group
    return int((W != 0).unflatten(1, (-1, group)).sum(-1).max())
