"""How the parts of SDS and DL-QAT grow with the width of a layer, on one thread.

    make bench-scale.growth
    make bench-scale.growth ARGS="--wide"   # and one layer of 4096 x 14336: minutes, and 2.5 GB

Square layers of 576 to 4096 inputs. For every part: processor seconds, the rate they mean, and the
exponent of seconds over width, fitted to the three widest; of the descents the output errors they
end with, relative. The rates at 2048 and 4096 inputs then give the hours of SDS for the shapes of
LLaMA 3.2 1B and LLaMA 2 7B: an extrapolation, since neither model is run here. Statistics,
evaluation and checkpoints come on top.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from backend.calibration.second_moments import DenseReference, InputStatistics
from backend.linalg.gram import inverse_root
from backend.pruning.config import SDSConfig
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.redense import redense
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.grid import minmax_grid
from benchmarks.shared import memory

WIDTHS = (576, 1024, 2048, 3072, 4096)
TOKENS, CALIBRATION = 2048, 16_384  # measured with, and of the runs in hours
GROUP, RANK = 64, 16
PATTERN = Pattern.parse("2:4")
WIDE = (4096, 14336)
Shape = tuple[int, int, int]  # outputs, inputs, and how many linears of it a block has
MODELS: dict[str, tuple[int, int, list[Shape]]] = {  # blocks, width of the rates, linears
    "LLaMA 3.2 1B": (16, 2048, [(2048, 2048, 2), (512, 2048, 2), (8192, 2048, 2), (2048, 8192, 1)]),
    "LLaMA 2 7B": (32, 4096, [(4096, 4096, 4), (11008, 4096, 2), (4096, 11008, 1)]),
}


@dataclass(frozen=True)
class Part:
    """One part of a method. `flops`: of a layer [out, in] with so many tokens."""

    name: str
    flops: Callable[[int, int, int], float]
    runs: float  # how often SDS does it for a layer


DESCENT = SDSConfig().redense_steps
PARTS = (
    Part("Gram, float32", lambda out, width, tokens: tokens * width**2, 0),
    Part("Gram, bfloat16", lambda out, width, tokens: tokens * width**2, 2),
    Part("inverse root", lambda out, width, tokens: 2 / 3 * width**3, 1),
    Part("2:4 solve", lambda out, width, tokens: out * width**2, 1),
    Part("descent, float32", lambda out, width, tokens: 2 * DESCENT * out * width**2, 0),
    Part("descent, bfloat16", lambda out, width, tokens: 2 * DESCENT * out * width**2, 2),
    Part("DL-QAT step, float32", lambda out, width, tokens: 6 * tokens * out * width, 0),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    return parser.parse_args()


def seconds(act: Callable[[], object]) -> float:
    """Processor seconds: the less of two for what is short."""
    taken = []
    while not taken or (len(taken) < 2 and taken[0] < 10):
        start = time.process_time()
        act()
        taken.append(time.process_time() - start)
    return min(taken)


def gram(X: Tensor) -> Tensor:
    """Half of X^T X, as the calibration pass adds it up."""
    width = X.shape[1]
    H = torch.zeros(width, width)
    for first in range(0, width, 512):
        H[first : first + 512, first:] += (X[:, first : first + 512].T @ X[:, first:]).float()
    return H


def measure(width: int) -> tuple[dict[str, float], dict[str, float]]:
    """Part -> seconds for a square layer, and descent -> the error it ends with."""
    random = torch.Generator().manual_seed(0)
    X = torch.randn(TOKENS, width, generator=random)
    X[:, : width // 64] *= 4
    W = torch.randn(width, width, generator=random) * 0.02
    found = {"Gram, float32": seconds(lambda: gram(X))}
    halves = X.bfloat16()
    found["Gram, bfloat16"] = seconds(lambda: gram(halves))
    H = X.T @ X / TOKENS
    found["inverse root"] = seconds(lambda: inverse_root(H, 0.01))
    inputs = InputStatistics(TOKENS, H.diagonal().clone(), H)
    inputs.inverse_root(0.01)  # kept: the solve is timed without it
    sparsegpt = PRUNERS["sparsegpt"].prune
    found["2:4 solve"] = seconds(lambda: sparsegpt(W, inputs, PATTERN, 0.01))
    sparse, target, errors = sparsegpt(W, inputs, PATTERN, 0.01), DenseReference(W, inputs), {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        given, ends = InputStatistics(TOKENS, inputs.energy, H, dtype=dtype), list[Tensor]()
        given.largest_eigenvalue  # noqa: B018  (kept, as above)
        found[f"descent, {name}"] = seconds(
            lambda g=given, to=ends: to.append(redense(sparse, W, g, DESCENT))
        )
        errors[name] = target.relative_error(ends[-1])
    found["DL-QAT step, float32"] = seconds(trained(W, X))
    return found, errors


def trained(W: Tensor, X: Tensor) -> Callable[[], None]:
    """A forward and a backward pass of a layer trained inside its rounding."""
    base = nn.Linear(*W.shape[::-1], bias=False)
    base.weight.data = W
    grid = minmax_grid(W.view(len(W), -1, GROUP), 4, "symmetric")
    layer = DLQATLinear(base, grid, rank=RANK, alpha=1.0)
    rows = X.clone().requires_grad_(True)
    return lambda: layer(rows).square().mean().backward()


def exponent(widths: list[int], taken: list[float]) -> float:
    """Of seconds over width, least squares in logarithms."""
    x, y = ([math.log(v) for v in values] for values in (widths, taken))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def hours(rates: Mapping[str, float], blocks: int, linears: list[Shape]) -> float:
    """Of all parts of SDS, at FLOP/s by part. Linears with the same inputs share their Gram."""
    total = 0.0
    for part in PARTS:
        shared = part.name.startswith(("Gram", "inverse"))
        for out, width, count in linears:
            often = part.runs * (1 if shared else count)
            total += often * part.flops(out, width, CALIBRATION) / rates[part.name]
    return blocks * total / 3600


def wide() -> dict[str, float]:
    """Seconds and peak memory of pruning one wide layer from its Gram."""
    out, width = WIDE
    random = torch.Generator().manual_seed(0)
    X = torch.randn(TOKENS, width, generator=random)
    H = X.T @ X / TOKENS
    H.diagonal().add_(0.1)
    del X
    W = torch.randn(out, width, generator=random) * 0.02
    memory.forget_peak()
    before = memory.held()
    inputs = InputStatistics(TOKENS, H.diagonal().clone(), H)
    taken = seconds(lambda: PRUNERS["sparsegpt"].prune(W, inputs, PATTERN, 0.01))
    held = H.numel() * 4 + W.numel() * 4
    return {"seconds": taken, "peak_gb": (memory.peak() - before + held) / 1e9}


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(1)
    with torch.no_grad():
        found, errors = {}, {}
        for width in chosen.widths:
            with torch.enable_grad():
                found[width], errors[width] = measure(width)
        extra = wide() if chosen.wide else {}
    table = Table("part", *(f"{w}: s" for w in found), "GF/s at the widest", "exponent")
    rates: dict[int, dict[str, float]] = {
        w: {p.name: p.flops(w, w, TOKENS) / found[w][p.name] for p in PARTS} for w in found
    }
    last, fitted = max(found), sorted(found)[-3:]
    exponents = (
        {p.name: exponent(fitted, [found[w][p.name] for w in fitted]) for p in PARTS}
        if len(fitted) > 1
        else {}
    )
    for part in PARTS:
        cells = [f"{found[w][part.name]:.3g}" for w in found]
        rate, grows = rates[last][part.name] / 1e9, exponents.get(part.name, math.nan)
        table.add_row(part.name, *cells, f"{rate:.0f}", f"{grows:.2f}")
    console = Console(width=140)
    console.print(table)
    times = {
        name: hours(rates[width], blocks, linears)
        for name, (blocks, width, linears) in MODELS.items()
        if width in rates
    }
    for width, by_dtype in errors.items():
        console.print(f"{width}: descents end with", *(f"{n} {x:.7f}" for n, x in by_dtype.items()))
    for name, value in times.items():
        console.print(f"SDS of {name} with {CALIBRATION:,} tokens: {value:.1f} h on one thread.")
    if extra:
        console.print(f"{WIDE[0]} x {WIDE[1]}: {extra['seconds']:.0f} s, {extra['peak_gb']:.1f} GB")
    print(
        json.dumps(
            {
                "seconds": found,
                "errors": errors,
                "exponents": exponents,
                "hours": times,
                "wide": extra,
            }
        )
    )


if __name__ == "__main__":
    main()
