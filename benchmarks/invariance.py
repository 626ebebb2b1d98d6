"""Which methods give the same result for a model that only looks different: every method on a
model, and on the same after each of `benchmarks.shared.model_changes`.

Cells: the largest share of a layer's mask or codes that differs, at any stage; the largest change
of a stage's loss on held-out text, in thousandths of a nat per token; and the stage that is kept
instead, if it is another. A dot: nothing differs.

make bench-invariance ARGS="--model toy --methods wanda sds"
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy

import torch
from rich.console import Console
from rich.table import Table

from backend.models.loading import load
from backend.text.slices import calibration_slices
from benchmarks.shared.model_changes import CHANGES, Changed, change
from benchmarks.shared.outcomes import METHODS, Outcome

SEGMENTS, LENGTH = 16, 128


def difference(changed: Changed, before: Outcome, after: Outcome) -> tuple[float, float, str]:
    """The share of entries that differ, the change of the loss, and the stage that is kept now."""
    shares = [changed.differing(W, after.entries[stage]) for stage, W in before.entries.items()]
    moved = [abs(after.losses[stage] - loss) for stage, loss in before.losses.items()]
    kept = "" if after.kept == before.kept else after.kept
    return max(shares, default=0.0), max(moved), kept


def cell(found: tuple[float, float, str]) -> str:
    share, moved, kept = found
    if not any(found):
        return "·"
    return f"{share:.2%} {1000 * moved:.2f} {kept}".strip()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--blocks", type=int, default=0, help="keep the first; 0: all")
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--changes", nargs="*", default=[*CHANGES], choices=[*CHANGES])
    parser.add_argument("--unit", type=int, default=64, help="channels that stay neighbours")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    loaded = load(chosen.model, dtype=torch.float32)
    text = "toystories" if chosen.model == "toy" else "wikipedia"
    rows = calibration_slices(text, loaded.tokenizer, SEGMENTS, LENGTH, 0)[0].input_ids
    if chosen.blocks:
        del loaded.model.base_model.layers[chosen.blocks :]
        loaded.model.config.num_hidden_layers = chosen.blocks
    found = {}
    table = Table("method", *chosen.changes, box=None)
    for name in chosen.methods:
        before = METHODS[name](deepcopy(loaded.model), rows)
        found[name] = {}
        for each in chosen.changes:
            changed = change(deepcopy(loaded.model), each, chosen.unit)
            found[name][each] = difference(changed, before, METHODS[name](changed.model, rows))
        table.add_row(name, *map(cell, found[name].values()))
        print(name, *map(cell, found[name].values()), flush=True)
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
