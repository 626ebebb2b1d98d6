"""Measured speed of pruned models on this machine.

- decoding: tokens per second of greedy decoding at batch size 1, without the prefill;
- matrix-vector product, dense and without the zeros at several sparsities, by the native decoder (a
  bit mask and bfloat16 weights). The matrix gets more rows until it exceeds the cache of a core.

Two products are timed alternately after a warm-up and compared by the ratio of their best times."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from backend.decoding.native.compiler import CompilerError, library
from backend.decoding.native.linear import NativeLinear
from backend.decoding.native.weights import SPARSE_BFLOAT16
from backend.reporter import Reporter, stop_if_asked

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MIN_TIMING_S = 0.001  # shorter timings are limited by the resolution of the clock
ROUNDS = 15
SEED = 0
MIN_PRODUCT_WEIGHTS = 2**23  # weights of the matrix in a product at least


Clock = Callable[[], float]
Decoder = Callable[[Sequence[int]], Iterator[int]]  # ids of a prompt -> greedy tokens


@dataclass(frozen=True)
class DecodingSpeed:
    """Tokens per second over several repeats."""

    value: float  # median of the repeats
    lowest: float
    highest: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float], tokens: int) -> "DecodingSpeed":
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

    They alternate; one extra warm-up round is not counted. `clock`: seconds; a token is on the
    processor when it is read. Raises CancelledError: cancellation was requested."""
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


@dataclass(frozen=True)
class SparseProductCurve:
    """Speed of a sparse matrix product relative to the dense product."""

    shape: tuple[int, int]  # (out, in)
    zeros: tuple[float, ...]  # sparsities, ascending
    speed_up: tuple[float, ...]  # dense time / sparse time at each of them

    @property
    def break_even(self) -> float | None:
        """The sparsity above which the sparse product was always faster; None if it was slower at
        the highest. The logarithm of the speed-up is interpolated linearly."""
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
    rows: int, columns: int, reporter: Reporter, shares: Sequence[float] = SPARSITIES
) -> SparseProductCurve:
    """Time dense against sparse: a matrix of `columns` inputs with random zeros, one vector.
    `rows`: of the layer; the matrix has a multiple of them. `columns`: `skips_zeros` holds for
    them. Raises CancelledError: cancellation was requested."""
    dice = torch.Generator().manual_seed(SEED)
    height = rows * -(-MIN_PRODUCT_WEIGHTS // (rows * columns))
    W = torch.randn(height, columns, generator=dice)
    place = torch.rand(height, columns, generator=dice)
    x = torch.randn(1, columns, generator=dice)
    speed_ups = []
    with _one_thread():
        for share in shares:
            stop_if_asked(reporter)
            dense, sparse = _products(W * (place >= share))
            speed_ups.append(_ratio(partial(dense, x), partial(sparse, x)))
    return SparseProductCurve((rows, columns), tuple(shares), tuple(speed_ups))


@contextmanager
def _one_thread() -> Iterator[None]:
    """What runs inside is computed by one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def skips_zeros(columns: int) -> bool:
    """Whether the native decoder can leave out zeros of layers with so many inputs here."""
    try:
        return columns % 2 == 0 and bool(library().slimscope_supports(SPARSE_BFLOAT16))
    except CompilerError:
        return False


Product = Callable[[Tensor], Tensor]  # x [1, in] -> W x


def _products(W: Tensor) -> tuple[Product, Product]:
    """By all weights [out, in], and without the zeros."""
    linear = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(W.bfloat16(), requires_grad=False)
    return NativeLinear(linear, sparse=False), NativeLinear(linear)


def _ratio(baseline: Callable[[], Tensor], candidate: Callable[[], Tensor]) -> float:
    """Time of `baseline` / time of `candidate`: the best of `ROUNDS` alternating timings each."""
    calls = [_calls(each) for each in (baseline, candidate)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for each, count, taken in zip((baseline, candidate), calls, times, strict=True):
            taken.append(_seconds(each, count))
    return min(times[0]) / min(times[1])


def _calls(work: Callable[[], Tensor]) -> int:
    """Number of calls that take at least `MIN_TIMING_S`; also warms up."""
    count = 1
    _seconds(work, count)
    while (taken := _seconds(work, count) * count) < MIN_TIMING_S:
        count *= max(2, min(10, math.ceil(MIN_TIMING_S / max(taken, 1e-9))))
    return count


def _seconds(work: Callable[[], Tensor], count: int) -> float:
    """Mean seconds per call over `count` calls."""
    begun = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - begun) / count
