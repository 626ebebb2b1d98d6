"""Size of the weights of a compressed model in real sparse storage formats.

For a matrix of N weights, K of them nonzero, with 16-bit values:

    dense     2 N
    bitmask   2 K + N / 8                      one bit per weight marks the nonzero values
    n:m       N n / m (2 + ceil(log2 m) / 8)   n values per group, with their indices

The bitmask is smaller than dense above 1/16 zeros. n:m stores n values of every group, including
zeros in groups with fewer than n nonzero values; 2:4 takes 2 index bits per value, 9/16 of dense. A
model counts as n:m with the n of its fullest group, if at least `MIN_FILL` of the stored values are
nonzero. Row indices, headers and padding are not counted."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

VALUE_BYTES = 2  # per value
GROUPS = (4, 8)  # values of m that are tested for n:m
MIN_FILL = 0.9  # below it the pattern may be there by chance


@dataclass(frozen=True)
class LinearSizes:
    """Bytes of the linears in a model's blocks."""

    weights: int  # number of weights
    nonzero: int  # number of nonzero ones
    dense: int  # bytes with 16-bit values, as is `bitmask`
    bitmask: int
    compact: int | None  # bytes in the smallest n:m format; None for a model that is not n:m
    pattern: tuple[int, int] | None  # (n, m) of `compact`

    @property
    def zero_share(self) -> float:
        return 1 - self.nonzero / self.weights


def compact_bytes(weights: int, keep: int, group: int) -> int:
    """Bytes of one n:m matrix: n = `keep` values of each m = `group`, and their indices."""
    values = weights // group * keep
    return VALUE_BYTES * values + -(-values * (group - 1).bit_length() // 8)


def sizes(matrices: Iterable[Tensor]) -> LinearSizes:
    """The total sizes of matrices, each [out, in]; they are read one at a time."""
    weights = nonzero = bitmask = 0
    fullest_of = dict.fromkeys(GROUPS, 0)
    for W in matrices:
        kept = int(torch.count_nonzero(W))
        weights, nonzero = weights + W.numel(), nonzero + kept
        bitmask += VALUE_BYTES * kept + -(-W.numel() // 8)
        fullest_of = {m: max(n, fullest(W, m)) for m, n in fullest_of.items()}
    formats = {
        (n, m): compact_bytes(weights, n, m)
        for m, n in fullest_of.items()
        if 0 < n < m and nonzero >= MIN_FILL * weights * n / m
    }
    best = min(formats, key=formats.__getitem__, default=None)
    compact = formats[best] if best else None
    return LinearSizes(weights, nonzero, VALUE_BYTES * weights, bitmask, compact, best)


def fullest(W: Tensor, group: int) -> int:
    """The largest count of nonzero values in a group of `group` inputs of `W` [out, in]; `group` if
    the number of inputs is not a multiple of it."""
    if W.shape[1] % group:
        return group
    return int((W != 0).unflatten(1, (-1, group)).sum(-1).max())
