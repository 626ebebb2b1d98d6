"""One weight matrix at a time, on one thread: the least CPU milliseconds of some alternated tries.

The two descents of SDS with products in bfloat16 units beside float32, and the relative output
errors they end with. Inputs are about as correlated as real ones. `bench-pruning` has SparseGPT
beside the plain algorithm.

make bench-layers.solvers ARGS="--tries 3"
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from backend.calibration.second_moments import DenseReference, InputStatistics
from backend.pruning.config import SDSConfig
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.redense import redense
from backend.pruning.weight_adjustment import adjust

DESCENTS = [(576, 576), (1536, 576), (576, 1536)]


def layer(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """W [out, in], and H of inputs of which a few directions dominate."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=random) / columns**0.5
    mix[:, : columns // 64] *= 8
    X = torch.randn(2 * columns, columns, generator=random) @ (mix + torch.eye(columns)).T
    return torch.randn(rows, columns, generator=random) * 0.02, X.T @ X / len(X)


def least(tries: int, *sides: Callable[[], Tensor]) -> list[float]:
    """Milliseconds of each side; they take turns."""
    spent = [float("inf")] * len(sides)
    for _ in range(tries):
        for number, side in enumerate(sides):
            start = time.process_time()
            side()
            spent[number] = min(spent[number], 1000 * (time.process_time() - start))
    return spent


def descents(rows: int, columns: int, tries: int) -> dict[str, list[float]]:
    """For each step [float32, bfloat16]: milliseconds, then the relative output errors."""
    W, H = layer(rows, columns)
    both = [
        InputStatistics(2 * columns, H.diagonal(), H, dtype=d)
        for d in (torch.float32, torch.bfloat16)
    ]
    for inputs in both:
        inputs.largest_eigenvalue  # noqa: B018  (kept: it is shared by all steps and layers)
    config, pattern, target = SDSConfig(), Pattern.parse("2:4"), DenseReference(W, both[0])
    sparse = PRUNERS["wanda"].prune(W, both[0], pattern, 0.01)
    steps: dict[str, Callable[[InputStatistics], Tensor]] = {
        "re-dense": lambda inputs: redense(sparse, W, inputs, config.redense_steps),
        "adjustment": lambda inputs: adjust(sparse, W, inputs, pattern, config.adjust_steps, True),
    }
    found = {}
    for name, step in steps.items():
        spent = least(tries, *(partial(step, inputs) for inputs in both))
        found[name] = [*spent, *(target.relative_error(step(inputs)) for inputs in both)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", default=3, type=int)
    tries = parser.parse_args().tries
    figures: dict[str, dict[str, list[float]]] = {}
    torch.set_num_threads(1)
    heads = ("float32, ms", "bfloat16, ms", "÷", "error, float32", "bfloat16")
    table = Table("out × in", "step", *heads)
    for rows, columns in DESCENTS:
        found = figures[f"{rows}x{columns}"] = descents(rows, columns, tries)
        for step, (slow, fast, *errors) in found.items():
            times = f"{slow:.0f}", f"{fast:.0f}", f"{fast / slow:.2f}"
            table.add_row(f"{rows} × {columns}", step, *times, *(f"{x:.7f}" for x in errors))
    Console(width=140).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
