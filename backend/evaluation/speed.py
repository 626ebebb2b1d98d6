"""Measured speed of pruned models on this machine.

- decoding: tokens per second of greedy decoding at batch size 1, without the prefill of the prompt,
  with the cache and kernels of `transformers`;
- matrix-vector product, the cost of a decoded token in each linear: dense and sparse (CSR, 32-bit
  indices) at several sparsities. The break-even point is the sparsity above which CSR is faster;
- dense against 2:4, on GPUs with sparse tensor cores.

Two products are timed alternately after a warm-up and compared by the ratio of their best times: on
a shared machine the median of so short a measurement reflects other load. Decoding takes long
enough for a median, which is reported with its range.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured
from transformers import PreTrainedModel

from backend.models.greedy import greedy
from backend.reporter import Reporter, stop_if_asked

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEAST_S = 0.001  # shorter timings are limited by the resolution of the clock
ROUNDS = 15
AMPERE = (8, 0)  # the first GPUs with sparse tensor cores
SEMI_BATCHES = (1, 64)
SEED = 0


Clock = Callable[[torch.device], float]


@dataclass(frozen=True)
class DecodingSpeed:
    """Tokens per second over several repeats.

    Attributes:
        value: median; `lowest`, `highest`: of the repeats.
    """

    value: float
    lowest: float
    highest: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float], tokens: int) -> DecodingSpeed:
        """From the seconds of repeats that decoded `tokens` tokens each."""
        rates = [tokens / s for s in seconds]
        return cls(median(rates), min(rates), max(rates), len(rates))


def decode_seconds(
    models: Sequence[PreTrainedModel],
    prompt: Sequence[int],
    tokens: int,
    repeats: int,
    reporter: Reporter,
    clock: Clock | None = None,
) -> list[list[float]]:
    """Seconds to decode `tokens` tokens after a prompt, for each model and repeat.

    The models alternate; one extra warm-up round is not counted.

    Args:
        clock: seconds on a device; wall-clock time when None.

    Raises:
        CancelledError: cancellation was requested.
    """
    rounds = []
    for number in range(1 + repeats):
        reporter.progress(number, 1 + repeats, "Measuring speed")
        read = clock or _now
        rounds.append([_decoded(model, prompt, tokens, reporter, read) for model in models])
    return [list(seconds) for seconds in zip(*rounds[1:], strict=True)]


def _decoded(
    model: PreTrainedModel, prompt: Sequence[int], tokens: int, reporter: Reporter, clock: Clock
) -> float:
    stream = greedy(model, prompt)
    next(stream)  # prefill
    begun = clock(model.device)
    for _ in range(tokens):
        stop_if_asked(reporter)
        next(stream)
    return clock(model.device) - begun


def _now(device: torch.device) -> float:
    """Seconds, after synchronising with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class SparseProductCurve:
    """Speed of a sparse matrix product relative to the dense product.

    Attributes:
        shape: (out, in).
        zeros: sparsities, ascending; `speed_up`: dense time / sparse time at each of them.
    """

    shape: tuple[int, int]
    zeros: tuple[float, ...]
    speed_up: tuple[float, ...]

    @property
    def break_even(self) -> float | None:
        """The sparsity above which the sparse product was always faster; None if it was slower at
        the highest. The logarithm of the speed-up is interpolated linearly.
        """
        logs = [math.log(x) for x in self.speed_up]
        slower = [i for i, log in enumerate(logs) if log < 0]
        if not slower:
            return self.zeros[0]
        i = slower[-1]
        if i == len(logs) - 1:
            return None
        part = -logs[i] / (logs[i + 1] - logs[i])
        return self.zeros[i] + part * (self.zeros[i + 1] - self.zeros[i])


@torch.no_grad()
def csr_curve(
    rows: int,
    columns: int,
    device: torch.device,
    reporter: Reporter,
    shares: Sequence[float] = SHARES,
) -> SparseProductCurve:
    """Time dense against CSR: a float32 matrix [rows, columns] with random zeros, one vector.

    Raises:
        CancelledError: cancellation was requested.
    """
    dice = torch.Generator().manual_seed(SEED)
    W = torch.randn(rows, columns, generator=dice).to(device)
    place = torch.rand(rows, columns, generator=dice).to(device)
    x = torch.randn(columns, generator=dice).to(device)
    speed_ups = []
    for share in shares:
        stop_if_asked(reporter)
        pruned = W * (place >= share)
        packed = csr(pruned)
        speed_ups.append(_ratio(lambda m=pruned: m @ x, lambda m=packed: m @ x, device))  # type: ignore[misc]
    return SparseProductCurve((rows, columns), tuple(shares), tuple(speed_ups))


def csr(W: Tensor) -> Tensor:
    """`W` [out, in] in CSR with 32-bit indices; torch's default are 64-bit indices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        wide = W.to_sparse_csr()
        indices = (wide.crow_indices().int(), wide.col_indices().int())
        return torch.sparse_csr_tensor(
            *indices, wide.values(), W.shape, device=W.device, check_invariants=False
        )


@torch.no_grad()
def semi_structured(
    rows: int, columns: int, device: torch.device, reporter: Reporter
) -> dict[int, float]:
    """Speed-up of 2:4 over dense in 16 bits, by batch size; empty if the device has no sparse
    tensor cores or torch has no kernel for the shape."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < AMPERE:
        return {}
    stop_if_asked(reporter)
    W = torch.randn(rows, columns, device=device, dtype=torch.float16)
    dense = (W.view(-1, 4) * torch.tensor([1, 1, 0, 0], device=device)).view(rows, columns)
    try:
        sparse = to_sparse_semi_structured(dense)
        speed_ups = {}
        for batch in SEMI_BATCHES:
            x = torch.randn(batch, columns, device=device, dtype=torch.float16)
            speed_ups[batch] = _ratio(
                lambda x=x: functional.linear(x, dense),  # type: ignore[misc]
                lambda x=x: functional.linear(x, sparse),  # type: ignore[misc]
                device,
            )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reporter.log(f"No 2:4 kernel for {rows} by {columns}: {error}"[:300])
        return {}
    return speed_ups


def _ratio(
    baseline: Callable[[], Tensor], candidate: Callable[[], Tensor], device: torch.device
) -> float:
    """Time of `baseline` / time of `candidate`: the best of `ROUNDS` alternating timings each."""
    calls = [_calls(each, device) for each in (baseline, candidate)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for each, count, taken in zip((baseline, candidate), calls, times, strict=True):
            taken.append(_seconds(each, count, device))
    return min(times[0]) / min(times[1])


def _calls(work: Callable[[], Tensor], device: torch.device) -> int:
    """Number of calls that take at least `LEAST_S`; also warms up."""
    count = 1
    _seconds(work, count, device)
    while (taken := _seconds(work, count, device) * count) < LEAST_S:
        count *= max(2, min(10, math.ceil(LEAST_S / max(taken, 1e-9))))
    return count


def _seconds(work: Callable[[], Tensor], count: int, device: torch.device) -> float:
    """Mean seconds per call over `count` calls."""
    begun = _now(device)
    for _ in range(count):
        work()
    return (_now(device) - begun) / count
