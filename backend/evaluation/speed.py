"""Measured speed of pruned models on this machine.

- decoding: tokens per second of greedy decoding at batch size 1, without the prefill of the prompt;
- matrix-vector product, the cost of a decoded token in each linear: dense and without the zeros at
  several sparsities, by the native decoder (a bit mask and the other weights, bfloat16), or where
  it cannot be used by torch (CSR, 32-bit indices, float32). The break-even point is the sparsity
  above which leaving zeros out is faster. A decoded token reads every layer once, so the matrix
  gets more rows until it is larger than the cache of a core, of which one works;
- dense against 2:4, on GPUs with sparse tensor cores.

Two products are timed alternately after a warm-up and compared by the ratio of their best times: on
a shared machine the median of so short a measurement reflects other load. Decoding takes long
enough for a median, which is reported with its range.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured

from backend.native.compiler import CompilerError, library
from backend.native.linear import NativeLinear
from backend.native.weights import SPARSE_BFLOAT16
from backend.reporter import Reporter, stop_if_asked

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEAST_S = 0.001  # shorter timings are limited by the resolution of the clock
ROUNDS = 15
AMPERE = (8, 0)  # the first GPUs with sparse tensor cores
SEMI_BATCHES = (1, 64)
SEED = 0
STREAMED = 2**23  # weights of the matrix in a product at least
BITMASK, CSR = "bitmask", "CSR"  # how zeros are left out


Clock = Callable[[], float]
Decoder = Callable[[Sequence[int]], Iterator[int]]  # ids of a prompt -> greedy tokens


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
    decoders: Sequence[Decoder],
    prompt: Sequence[int],
    tokens: int,
    repeats: int,
    reporter: Reporter,
    clock: Clock = time.perf_counter,
) -> list[list[float]]:
    """Seconds to decode `tokens` tokens after a prompt, for each decoder and repeat.

    They alternate; one extra warm-up round is not counted.

    Args:
        clock: seconds; a token is on the processor when it is read.

    Raises:
        CancelledError: cancellation was requested.
    """
    rounds = []
    for number in range(1 + repeats):
        reporter.progress(number, 1 + repeats, "Measuring speed")
        rounds.append([_decoded(each, prompt, tokens, reporter, clock) for each in decoders])
    return [list(seconds) for seconds in zip(*rounds[1:], strict=True)]


def _decoded(
    decoder: Decoder, prompt: Sequence[int], tokens: int, reporter: Reporter, clock: Clock
) -> float:
    stream = decoder(prompt)
    next(stream)  # prefill
    begun = clock()
    for _ in range(tokens):
        stop_if_asked(reporter)
        next(stream)
    return clock() - begun


def _now(device: torch.device) -> float:
    """Seconds, after synchronising with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class SparseProductCurve:
    """Speed of a sparse matrix product relative to the dense product.

    Attributes:
        kernel: how zeros are left out, `BITMASK` or `CSR`.
        shape: (out, in).
        zeros: sparsities, ascending; `speed_up`: dense time / sparse time at each of them.
    """

    kernel: str
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
def sparse_product_curve(
    rows: int,
    columns: int,
    device: torch.device,
    reporter: Reporter,
    shares: Sequence[float] = SHARES,
) -> SparseProductCurve:
    """Time dense against sparse: a matrix of `columns` inputs with random zeros, one vector.

    Args:
        rows: of the layer; the matrix has a multiple of them.

    Raises:
        CancelledError: cancellation was requested.
    """
    dice = torch.Generator().manual_seed(SEED)
    height = rows * -(-STREAMED // (rows * columns))
    W = torch.randn(height, columns, generator=dice).to(device)
    place = torch.rand(height, columns, generator=dice).to(device)
    x = torch.randn(1, columns, generator=dice).to(device)
    native = device.type == "cpu" and _skips_zeros() and columns % 2 == 0
    speed_ups = []
    with _one_thread():
        for share in shares:
            stop_if_asked(reporter)
            dense, sparse = (_native if native else _torch)(W * (place >= share))
            speed_ups.append(_ratio(partial(dense, x), partial(sparse, x), device))
    kernel = BITMASK if native else CSR
    return SparseProductCurve(kernel, (rows, columns), tuple(shares), tuple(speed_ups))


@contextmanager
def _one_thread() -> Iterator[None]:
    """What runs inside is computed by one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _skips_zeros() -> bool:
    try:
        return bool(library().supports(SPARSE_BFLOAT16))
    except CompilerError:
        return False


Product = Callable[[Tensor], Tensor]  # x [1, in] -> W x


def _native(W: Tensor) -> tuple[Product, Product]:
    linear = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(W.bfloat16(), requires_grad=False)
    return NativeLinear(linear, sparse=False), NativeLinear(linear)


def _torch(W: Tensor) -> tuple[Product, Product]:
    packed = csr(W)
    return lambda x: W @ x[0], lambda x: packed @ x[0]


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
