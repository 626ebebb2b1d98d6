"""What a pruned model weighs, and how fast it decodes beside the dense one with the decoder that
Slimscope uses (docs/decoding.md). Weights are pruned by magnitude: which ones are zero changes
neither figure.

Decoding is told in tokens for each second of processor time, which on one thread is what a quiet
machine would take: other work on the machine is not measured.

make bench-acceleration ARGS="--pattern 90%"
"""

from __future__ import annotations

import argparse
import json
import sys
from copy import deepcopy
from statistics import median
from time import process_time

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from backend.evaluation.size import sizes
from backend.evaluation.speed import (
    DecodingSpeed,
    decode_seconds,
    skips_zeros,
    sparse_product_curve,
)
from backend.models.blocks import block_linears, decoder_blocks
from backend.models.loading import load
from backend.pruning.masks import keep_mask
from backend.pruning.pattern import Pattern
from backend.quantization.packed_linear import to_bfloat16
from backend.reporter import SilentReporter
from backend.text.prompt_ids import prompt_ids
from backend.text.prompts import BUILT_IN, benchmark_prompts
from jobs.evaluation.acceleration import decoders_of


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
