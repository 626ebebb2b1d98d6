"""What a pruned model weighs, and how fast it decodes beside the dense one with the decoder that
Slimscope uses (docs/decoding.md). Weights are pruned by magnitude: which ones are zero changes
neither figure.

Decoding is told in tokens for each second of processor time, which on one thread is what a quiet
machine would take: other work on the machine is not measured.

Products of the largest layer and a vector, dense and without random zeros (a bit mask and bfloat16
weights), are timed alternately after a warm-up and compared by the ratio of their best times. The
matrix gets more rows until it exceeds the cache of a core.

make bench-acceleration ARGS="--pattern 90%"
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import process_time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.decoding.native.compiler import CompilerError, library
from backend.decoding.native.linear import NativeLinear
from backend.decoding.native.weights import SPARSE_BFLOAT16
from backend.evaluation.size import sizes
from backend.evaluation.speed import DecodingSpeed, decode_seconds
from backend.models.blocks import block_linears, decoder_blocks
from backend.models.loading import load
from backend.pruning.masks import keep_mask
from backend.pruning.pattern import Pattern
from backend.quantization.packed_linear import to_bfloat16
from backend.reporter import Reporter, SilentReporter, stop_if_asked
from backend.text.prompt_ids import prompt_ids
from backend.text.prompts import BUILT_IN, benchmark_prompts
from jobs.evaluation.acceleration import decoders_of

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MIN_TIMING_S = 0.001  # shorter timings are limited by the resolution of the clock
ROUNDS = 15
SEED = 0
MIN_PRODUCT_WEIGHTS = 2**23  # weights of the matrix in a product at least


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--tokens", default=32, type=int)
    parser.add_argument("--repeats", default=5, type=int)
    return parser.parse_args()


def layers(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    """Full name and module of every linear in a block."""
    blocks = range(len(decoder_blocks(model)))
    found = [linear for index in blocks for linear in block_linears(model, index).values()]
    return [(x.name, x.layer) for x in found if isinstance(x.layer, nn.Linear)]


@torch.no_grad()
def prune(model: PreTrainedModel, pattern: Pattern) -> None:
    """Sets the smallest weights of every linear to zero."""
    for _, linear in layers(model):
        linear.weight *= keep_mask(linear.weight.abs(), pattern)


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


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    quiet = SilentReporter()
    dense = load(asked.model)
    pruned = deepcopy(dense.model)
    prune(pruned, Pattern.parse(asked.pattern))
    matrices = [linear.weight.detach() for _, linear in layers(pruned)]
    found = sizes(matrices)
    models = {"dense": dense.model, "pruned": pruned}
    prompt = prompt_ids(benchmark_prompts(BUILT_IN, 1)[0].text, dense.tokenizer)
    for model in models.values():
        to_bfloat16(model)
    decoders, decoder = decoders_of([*models.values()], asked.tokens)
    seconds = decode_seconds(decoders, prompt, asked.tokens, asked.repeats, quiet, process_time)
    speeds = {
        name: DecodingSpeed.of(s, asked.tokens) for name, s in zip(models, seconds, strict=True)
    }
    ratios = {  # of turns that follow each other
        name: median(a / b for a, b in zip(seconds[0], s, strict=True))
        for name, s in zip(models, seconds, strict=True)
    }
    largest = max(dense.facts.linears, key=lambda x: x.weights)
    if not skips_zeros(largest.columns):
        sys.exit("The native decoder leaves out no zeros on this processor.")
    curve = sparse_product_curve(largest.rows, largest.columns, quiet)

    formats = {"dense, 16 bits": found.dense, "bitmask": found.bitmask}
    if found.pattern and found.compact:
        formats["{}:{}".format(*found.pattern)] = found.compact
    bytes_table = Table("format", "MB", "of dense", title=f"{asked.model}, linears of the blocks")
    for name, value in formats.items():
        bytes_table.add_row(name, f"{value / 1e6:.1f}", f"{value / found.dense:.1%}")
    speed_table = Table(
        "model", "tokens/CPU s", "lowest to highest", "of dense", title=f"Decoding, {decoder}"
    )
    for name, speed in speeds.items():
        span = f"{speed.lowest:.2f} to {speed.highest:.2f}"
        speed_table.add_row(name, f"{speed.value:.2f}", span, f"{ratios[name]:.2f} ×")
    curve_table = Table("zeros", "bit mask, of dense", title=f"One product, {curve.shape}")
    for zeros, speed_up in zip(curve.zeros, curve.speed_up, strict=True):
        curve_table.add_row(f"{zeros:.0%}", f"{speed_up:.2f} ×")
    Console().print(bytes_table, speed_table, curve_table)
    print(
        json.dumps(
            vars(asked)
            | {"bytes": formats, "zeros": found.zero_share, "break_even": curve.break_even}
            | {"tokens_per_cpu_second": {n: vars(s) for n, s in speeds.items()}, "of_dense": ratios}
            | {"bitmask": dict(zip(curve.zeros, curve.speed_up, strict=True))}
        )
    )


if __name__ == "__main__":
    main()
