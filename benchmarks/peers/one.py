"""One measurement in a process of its own, so that memory and warm-up are nobody else's.

python -m benchmarks.peers.one FOLDER TOOL METHOD PATTERN [PRECISION]   one line of JSON

FOLDER holds model/ (safetensors and tokenizer) and ids.safetensors: calibration, evaluation.
Imports nothing of Slimscope unless the tool is Slimscope.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.shared import memory

RUNS: dict[str, dict[str, Any]] = {  # tool -> what of the config is not the default
    "first": {"until": "first", "control": False},
    "sds": {"control": False},
    "sds-tested": {},
}


def parsed(pattern: str) -> float | tuple[int, int]:
    if ":" in pattern:
        keep, group = map(int, pattern.split(":"))
        return keep, group
    return float(pattern.rstrip("%")) / 100


def carry_out(
    model: Any, rows: Tensor, tool: str, method: str, pattern: str, precision: str
) -> float | None:
    """Prune the model with a tool; the CPU seconds of solving where they are known."""
    if tool == "plain":
        from benchmarks.peers import plain

        return plain.prune(model, rows, method, parsed(pattern))
    from benchmarks.peers import engine

    if tool == "slimscope":
        return engine.prune(model, rows, method, pattern, precision)
    engine.run(model, rows, method, pattern, precision, **RUNS[tool])
    return None


@torch.no_grad()
def bits_per_token(model: Any, rows: Tensor) -> float:
    losses = [model(input_ids=row[None], labels=row[None], use_cache=False).loss for row in rows]
    return torch.stack(losses).mean().item() / math.log(2)


def zero_share(model: Any) -> float:
    """Of the weights of all linears in decoder blocks."""
    weights = [p for p in model.model.layers.parameters() if p.dim() == 2]
    return sum(int((W == 0).sum()) for W in weights) / sum(W.numel() for W in weights)


def main(folder: Path, tool: str, method: str, pattern: str, precision: str = "fp32") -> None:
    torch.set_num_threads(1)
    ids = load_file(folder / "ids.safetensors")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    model.config.use_cache = False
    sum(float(p.detach().sum()) for p in model.parameters())  # every page of the file is read
    memory.forget_peak()
    before, start, wall = memory.held(), time.process_time(), time.perf_counter()
    solving = carry_out(model, ids["calibration"], tool, method, pattern, precision)
    figures = {
        "cpu": time.process_time() - start,
        "wall": time.perf_counter() - wall,
        "solving": solving,
        "memory": (memory.peak() - before) / 2**20,
        "bits": bits_per_token(model, ids["evaluation"]),
        "zeros": zero_share(model),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
