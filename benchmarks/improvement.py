"""Every method on tiny trained models of many shapes: does it improve on what it starts from?

SDS, its reconstruction and drafters are compared with their own start, other pruners with pruning
by magnitude, OWL with the same sparsity everywhere, quantizers with rounding to nearest, trained
quantisation with GPTQ; all by the loss on held-out text, of drafters by that of training. Cells:
the change of the perplexity at the method's last stage, and the stage a run keeps instead if that
is no better; or why the method is refused. The second table: whether the order of two methods on
SmolLM2-135M is that on each model. Any other failure is a mistake; the exit code is then 1.

make bench-improvement ARGS="--models llama gpt2 --steps 600"
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from copy import deepcopy

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from backend.errors import SlimscopeError
from benchmarks.shared.outcomes import FIRST, METHODS, Outcome, pruned, quantized
from benchmarks.shared.trained_models import SHAPES, texts, trained

ROWS, LENGTH, TEXT_SEED = 48, 64, 11
SHIFTED = "rtn, offsets"  # rounding to nearest on a grid of another kind
TRAINED = ("block-wise", "dlqat", "dlqat-kd")
START = {
    **dict.fromkeys(("wanda", "dsnot", "sparsegpt", "admm", "alps"), "magnitude"),
    "owl": "uniform",
    "hqq": SHIFTED,
    **dict.fromkeys(("rotated", "awq", "gptq", "rotated-gptq", "gptq-order"), "rtn"),
    **dict.fromkeys(TRAINED, "gptq"),
}
OWN = ("sds", "reconstruction", "medusa", "amphista")  # their start is a stage of their own
CLAIMS = (  # of docs/results, on SmolLM2-135M: better, worse
    ("wanda", "magnitude"),
    ("sparsegpt", "wanda"),
    ("alps", "sparsegpt"),
    ("alps", "admm"),
    ("sds", "wanda"),
    ("reconstruction", "wanda"),
    ("reconstruction", "sds"),
    ("gptq", "rtn"),
    ("gptq-order", "gptq"),
    ("awq", "rtn"),
    ("dlqat", "gptq"),
    ("block-wise", "gptq"),
    ("block-wise", "dlqat-kd"),
    ("dlqat-kd", "dlqat"),
)


def outcome(name: str, model: PreTrainedModel, rows: Tensor) -> Outcome | str:
    """What came of a method, or why it is refused."""
    try:
        if name == "uniform":
            return pruned(deepcopy(model), rows, base="wanda", pattern="50%", **FIRST)
        if name in ("hqq", SHIFTED):  # which moves zero-points, and finds none on a symmetric grid
            stage = "hqq" if name == "hqq" else "rtn"
            return quantized(deepcopy(model), rows, stage, grid="offset")
        return METHODS[name](deepcopy(model), rows)
    except SlimscopeError as error:
        return f"refused: {error.what} {error.why}"
    except Exception as error:
        return f"FAILS: {type(error).__name__}: {error}"[:200].replace("\n", " ")


def change(found: Outcome | str, rival: Outcome | str | float) -> float:
    """The change of the perplexity against that of a rival; NaN if one of them is refused."""
    if isinstance(found, str) or isinstance(rival, str):
        return math.nan
    return math.expm1(found.last - (rival if isinstance(rival, float) else rival.last))


def cell(name: str, found: dict[str, Outcome | str]) -> str:
    """What a method has changed, or why it is refused."""
    made = found[name]
    if isinstance(made, str):
        return made
    start = made.losses["first"] if name in OWN else found[START[name]]
    stages = [*made.losses]
    kept = f", keeps {made.kept}" if made.kept not in ("", stages[-1]) else ""
    return f"{100 * change(made, start):+.1f} %{kept}"


def examine(title: str, steps: int) -> dict[str, Outcome | str]:
    """Method -> its outcome, for one model."""
    model, rows = trained(title, steps), texts(ROWS, LENGTH, TEXT_SEED)
    names = dict.fromkeys((*METHODS, "uniform", SHIFTED))
    return {name: outcome(name, model, rows) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[*SHAPES], choices=[*SHAPES])
    parser.add_argument("--steps", type=int, default=600, help="of the training of each model")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for title in chosen.models:
        found[title] = examine(title, chosen.steps)
        print(
            title, *(f"{name} {cell(name, found[title])};" for name in (*START, *OWN)), flush=True
        )
    table, claims = Table("method", *found, box=None), Table("claim", *found, box=None)
    for name in (*START, *OWN):
        table.add_row(name, *(cell(name, each) for each in found.values()))
    for better, worse in CLAIMS:
        changes = (change(each[better], each[worse]) for each in found.values())
        claims.add_row(f"{better} below {worse}", *(f"{100 * x:+.1f} %" for x in changes))
    Console(width=240).print(table, claims)
    ends = {
        title: {name: x if isinstance(x, str) else round(x.last, 5) for name, x in each.items()}
        for title, each in found.items()
    }
    print(json.dumps(ends))
    sys.exit(any(str(x).startswith("FAILS") for each in ends.values() for x in each.values()))


if __name__ == "__main__":
    main()
