"""Pruning beside the plain algorithms: CPU seconds on one thread, memory, quality.

Every measurement is a process of its own. Rounds go through all of them in turn, so that a noisy
minute hits each alike; the table shows medians and, for times, the ratio to the plain algorithm.

make bench-pruning
make bench-pruning ARGS="--model smollm2-135m --rounds 1 --only '^(plain|slimscope) sparsegpt 50%'"
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.peers.bench_model import CALIBRATION, set_up

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Way:
    """One measurement; compared with the plain tool for the same method and pattern."""

    tool: str
    method: str
    pattern: str
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.tool} {self.method} {self.pattern} {self.precision}"


WAYS = [
    Way("plain", "sparsegpt", "50%"),
    Way("slimscope", "sparsegpt", "50%"),
    Way("slimscope", "sparsegpt", "50%", "bf16"),
    Way("plain", "sparsegpt", "2:4"),
    Way("slimscope", "sparsegpt", "2:4"),
    Way("slimscope", "sparsegpt", "2:4", "bf16"),
    Way("plain", "wanda", "50%"),
    Way("slimscope", "wanda", "50%"),
    Way("slimscope", "wanda", "50%", "bf16"),
    Way("first", "sparsegpt", "50%", "bf16"),
    Way("sds", "sparsegpt", "50%", "bf16"),
    Way("sds-tested", "sparsegpt", "50%", "bf16"),
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="25m", choices=[*CALIBRATION])
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--only", default="", help="a pattern for what is measured")
    parser.add_argument("--folder", type=Path, help="where the model and the text are kept")
    return parser.parse_args()


def measure(way: Way, folder: Path) -> Figures:
    """The figures of one process."""
    words = [way.tool, way.method, way.pattern, way.precision]
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.one", str(folder), *words],
        env={**os.environ, **alone},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    print(way, json.dumps(figures), file=sys.stderr, flush=True)
    return figures


def middle(found: list[Figures], name: str) -> float | None:
    values = [value for figures in found if (value := figures[name]) is not None]
    return median(values) if values else None


def table(found: dict[Way, list[Figures]], bytes_a_token: float) -> Table:
    made = Table(
        "tool",
        "method",
        "pattern",
        "forward",
        "CPU s",
        "÷ plain",
        "solving s",
        "÷ plain",
        "bits/byte",
        "− plain",
        "MiB more",
        "zeros",
    )
    for way, rounds in found.items():
        plain = found.get(Way("plain", way.method, way.pattern), [])
        cpu, solving = (cell(rounds, plain, name) for name in ("cpu", "solving"))
        bits = (middle(rounds, "bits") or 0) / bytes_a_token
        base = middle(plain, "bits")
        gap = "" if base is None else f"{bits - base / bytes_a_token:+.4f}"
        memory, zeros = middle(rounds, "memory") or 0, middle(rounds, "zeros") or 0
        made.add_row(
            way.tool,
            way.method,
            way.pattern,
            way.precision,
            *cpu,
            *solving,
            f"{bits:.4f}",
            gap,
            f"{memory:.0f}",
            f"{zeros:.2%}",
        )
    return made


def cell(rounds: list[Figures], plain: list[Figures], name: str) -> tuple[str, str]:
    """A median, and its ratio to that of the plain tool."""
    value, base = middle(rounds, name), middle(plain, name)
    if value is None:
        return "", ""
    return f"{value:.1f}", f"{value / base:.2f}" if base else ""


def main() -> None:
    chosen = arguments()
    ways = [way for way in WAYS if re.search(chosen.only, str(way))]
    found: dict[Way, list[Figures]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        folder = (chosen.folder or Path(scratch)).resolve()
        bytes_a_token = set_up(chosen.model, folder)
        for _ in range(chosen.rounds):
            for way in ways:
                found[way].append(measure(way, folder))
    segments, tokens = CALIBRATION[chosen.model]
    text = f"{chosen.model}, {segments} segments of {tokens} tokens, median of {chosen.rounds}"
    Console(width=140).print(text, table(found, bytes_a_token))
    print(json.dumps({str(way): rounds for way, rounds in found.items()}))


if __name__ == "__main__":
    main()
