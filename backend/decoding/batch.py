"""Several sequences decoded side by side. A pass reads the weights once for all of them, so up to
the point where arithmetic limits it, a batch takes little longer than one sequence."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from backend.decoding.native.model import PREFILL, NativeModel, Segment
from backend.decoding.target_model import TargetModel
from backend.models.kv_cache import PreallocatedCache

LOGITS = 2**24  # entries [n, V] in memory at once


class Batch(Protocol):
    """Sequences of the same length under one model."""

    def append(self, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Append the tokens `ids` [b, n]; yields hidden states [b, m, d] and float32 logits
        [b, m, V] of m columns after another."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order."""


def new_batch(target: TargetModel, rows: int, capacity: int) -> Batch:
    if target.native:
        return NativeBatch(target.native, rows, capacity)
    return TorchBatch(target, capacity)


class NativeBatch:
    """Through the native decoder; every sequence has a cache of its own."""

    def __init__(self, model: NativeModel, rows: int, capacity: int) -> None:
        self._model = model
        self._caches = [model.new_cache(capacity) for _ in range(rows)]

    def append(self, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for columns in ids.split(max(1, PREFILL // len(ids)), dim=1):
            rows = zip(self._caches, columns.tolist(), strict=True)
            segments = [Segment(cache, row, read_out=len(row)) for cache, row in rows]
            hidden, logits = self._model.forward_segments(segments)
            yield hidden.unflatten(0, columns.shape), logits.unflatten(0, columns.shape)

    def select(self, rows: Sequence[int]) -> None:
        self._caches = [self._caches[row] for row in rows]


class TorchBatch:
    """Through the model's own forward."""

    def __init__(self, target: TargetModel, capacity: int) -> None:
        self._target = target
        self._cache = PreallocatedCache(target.layers, capacity)

    def append(self, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        hidden = self._target.hidden(ids.to(self._target.device), self._cache)
        yield from read_out(self._target, hidden)

    def select(self, rows: Sequence[int]) -> None:
        self._cache.select(torch.tensor(rows, device=self._target.device))


def read_out(target: TargetModel, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states [b, n, d], and their logits in float32, some columns at a time."""
    for columns in hidden.split(max(1, LOGITS // (target.vocabulary * len(hidden))), dim=1):
        # one product: the head is not copied for each row
        logits = target.logits(columns.flatten(0, 1))
        yield columns, logits.float().unflatten(0, columns.shape[:2])
