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
import sys
from copy import deepcopy
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from backend.decoding.benchmark import MedianRange
from backend.decoding.native.weights import NativeLinear
from backend.evaluation.acceleration import sizes
from backend.models.blocks import all_linears, to_bfloat16
from backend.models.loading import load
from backend.pruning.pattern import Pattern
from backend.text.chat_template import prompt_ids
from backend.text.prompts import BUILT_IN, benchmark_prompts
from benchmarks.decoding import prune
from benchmarks.shared.timing import decode_seconds, timed
from jobs.evaluation.quality import decoders_of

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
ROUNDS, CALLS = 15, 10
MIN_PRODUCT_WEIGHTS = 2**23  # weights of the matrix in a product at least


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--tokens", default=32, type=int)
    parser.add_argument("--repeats", default=5, type=int)
    return parser.parse_args()


@torch.no_grad()
def product_speed_up(rows: int, columns: int, share: float) -> float:
    """Time of a product by all weights over that of one without the zeros, `share` of them: a
    matrix [a multiple of `rows`, columns], one vector."""
    dice = torch.Generator().manual_seed(0)
    height = rows * -(-MIN_PRODUCT_WEIGHTS // (rows * columns))
    W = torch.randn(height, columns, generator=dice)
    W *= torch.rand(height, columns, generator=dice) >= share
    x = torch.randn(1, columns, generator=dice)
    linear = nn.Linear(columns, height, bias=False, device="meta")
    linear.weight = nn.Parameter(W.bfloat16(), requires_grad=False)
    both = NativeLinear(linear, sparse=False), NativeLinear(linear)
    if not both[1].sparse:
        sys.exit("The native decoder leaves out no zeros on this processor.")
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + ROUNDS):
        for product, seconds in zip(both, taken, strict=True):
            seconds.append(timed(lambda of=product: [of(x) for _ in range(CALLS)]).wall)
    return min(taken[0][1:]) / min(taken[1][1:])


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    dense = load(asked.model)
    pruned = deepcopy(dense.model)
    prune(pruned, Pattern.parse(asked.pattern))
    found = sizes(linear.read() for linear in all_linears(pruned))
    models = {"dense": dense.model, "pruned": pruned}
    prompt = prompt_ids(benchmark_prompts(BUILT_IN, 1)[0].text, dense.tokenizer)
    for model in models.values():
        to_bfloat16(model)
    decoders, decoder = decoders_of([*models.values()])
    seconds = decode_seconds(decoders, prompt, asked.tokens, asked.repeats)
    speeds = {
        name: MedianRange.of([asked.tokens / s for s in taken])
        for name, taken in zip(models, seconds, strict=True)
    }
    ratios = {  # of turns that follow each other
        name: median(a / b for a, b in zip(seconds[0], s, strict=True))
        for name, s in zip(models, seconds, strict=True)
    }
    largest = max(dense.facts.linears, key=lambda x: x.weights)
    curve = {share: product_speed_up(largest.rows, largest.columns, share) for share in SPARSITIES}
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
    shape = f"{largest.rows} × {largest.columns}"
    curve_table = Table("zeros", "bit mask, of dense", title=f"One product, {shape}")
    for zeros, speed_up in curve.items():
        curve_table.add_row(f"{zeros:.0%}", f"{speed_up:.2f} ×")
    Console().print(bytes_table, speed_table, curve_table)
    speeds_told = {name: vars(speed) for name, speed in speeds.items()}
    told = {"bytes": formats, "zeros": found.zero_share, "bitmask": curve, "of_dense": ratios}
    print(json.dumps(vars(asked) | told | {"tokens_per_cpu_second": speeds_told}))


if __name__ == "__main__":
    main()
