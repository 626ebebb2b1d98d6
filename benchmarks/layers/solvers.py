"""One weight matrix at a time, on one thread: the least CPU milliseconds of some alternated tries.

First table: SparseGPT beside the plain algorithm, its factor and its walk over the columns, given
the same Hessian; and how many entries of the masks agree. Second table: the two descents of SDS
with products in bfloat16 units beside float32; and the relative output errors they end with. Inputs
are about as correlated as real ones.

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

from backend.calibration.linalg import inverse_root
from backend.calibration.second_moments import DenseReference, InputStatistics
from backend.pruning.config import SDSConfig
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.redense import redense
from backend.pruning.weight_adjustment import adjust
from benchmarks.peers import plain

SHAPES = [(512, 512), (1376, 512), (512, 1376), (2048, 768), (768, 2048), (2048, 2048),
          (2048, 5632)]  # fmt: skip
DESCENTS = [(576, 576), (1536, 576), (576, 1536)]
PATTERNS: dict[str, plain.Sparsity] = {"50%": 0.5, "2:4": (2, 4)}


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


def measure(rows: int, columns: int, tries: int) -> dict[str, list[float]]:
    """What each step took [plain, ours], and the share of each mask that agrees."""
    W, H = layer(rows, columns)
    damped = H + plain.DAMPING * H.diagonal().mean() * torch.eye(columns)
    found = {
        "factor": least(tries, lambda: plain.inverse_root(damped), lambda: inverse_root(H, 0.01))
    }
    U, inputs = plain.inverse_root(damped), InputStatistics(2 * columns, H.diagonal(), H)
    inputs.inverse_root(0.01)  # kept: what is timed from here on is the walk alone
    for name, sparsity in PATTERNS.items():
        pattern = Pattern.parse(name)

        def theirs(sparsity: plain.Sparsity = sparsity) -> Tensor:
            return plain.sweep(W.clone(), U, sparsity)

        def ours(pattern: Pattern = pattern) -> Tensor:
            return PRUNERS["sparsegpt"].prune(W, inputs, pattern, 0.01)

        found[name] = least(tries, theirs, ours)
        found[f"same {name}"] = [((theirs() != 0) == (ours() != 0)).double().mean().item()]
    return found


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


def cells_of(theirs: float, ours: float) -> tuple[str, str, str]:
    return f"{theirs:.0f}", f"{ours:.0f}", f"{ours / theirs:.2f}"


def pruning_table(tries: int) -> tuple[Table, dict[str, dict[str, list[float]]]]:
    steps = ["factor", *PATTERNS]
    heads = [word for step in steps for word in (f"{step}, ms: plain", "ours", "÷")]
    table = Table("out × in", *heads, "masks agree", "2:4 ÷ 50 %")
    figures = {}
    for rows, columns in SHAPES:
        found = figures[f"{rows}x{columns}"] = measure(rows, columns, tries)
        cells = [cell for step in steps for cell in cells_of(*found[step])]
        same = min(found[f"same {name}"][0] for name in PATTERNS)
        ratio = found["2:4"][1] / found["50%"][1]
        table.add_row(f"{rows} × {columns}", *cells, f"{same:.3%}", f"{ratio:.2f}")
    return table, figures


def descent_table(tries: int) -> tuple[Table, dict[str, dict[str, list[float]]]]:
    table = Table(
        "out × in", "step", "float32, ms", "bfloat16, ms", "÷", "error, float32", "bfloat16"
    )
    figures = {}
    for rows, columns in DESCENTS:
        found = figures[f"{rows}x{columns}"] = descents(rows, columns, tries)
        for step, (slow, fast, *errors) in found.items():
            ends = [f"{error:.7f}" for error in errors]
            table.add_row(f"{rows} × {columns}", step, *cells_of(slow, fast), *ends)
    return table, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", default=3, type=int)
    tries = parser.parse_args().tries
    torch.set_num_threads(1)
    console, all_figures = Console(width=140), {}
    for make in (pruning_table, descent_table):
        table, all_figures[make.__name__] = make(tries)
        console.print(table)
    print(json.dumps(all_figures))


if __name__ == "__main__":
    main()
