"""Memory and work of compression on GPUs of several sizes, by the functions of the form; and peak
memory on this machine, beside the same formula, of models with random weights.

make bench-gpu                                                # the table of docs/gpu.md
make bench-gpu ARGS="--measure '0.1 B' '0.3 B'"               # runs of models with random weights
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import init_empty_weights
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from backend.errors import SlimscopeError
from backend.models import cards
from backend.models.cards import Card, CardReport
from backend.models.sources.spec import TOY_FOLDER
from backend.printable import readable_bytes
from backend.queue.actor import Actor
from backend.settings import settings
from backend.store.migrate import upgrade
from benchmarks.runs import finish
from jobs.submit import check_and_estimate, submit

CARD_GB = (12, 24, 80)
FREE = 0.95  # share of a GPU that is free: the driver holds the rest
CONSOLE = Console(stderr=True)
# hidden, inner width, layers, heads, key-value heads, vocabulary, tied embeddings
SHAPES = {
    "1 B": (2048, 8192, 16, 32, 8, 128256, True),
    "3 B": (3072, 8192, 28, 24, 8, 128256, True),
    "8 B": (4096, 14336, 32, 32, 8, 128256, False),
}
MEASURED = {
    "0.1 B": (768, 2048, 12, 12, 12, 32000, True),
    "0.3 B": (1024, 4096, 18, 16, 16, 32000, True),
    "1.1 B": (2048, 5632, 22, 32, 4, 32000, False),
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "SDS": ("sds", {}),
    "GPTQ": ("dlqat", {"stages": "gptq"}),
    "DL-QAT": ("dlqat", {"batch": 1, "checkpointing": True}),
    "Amphista": ("amphista", {}),
    "profile": ("profile", {}),
}
TEXT = {
    "segments": 8,
    "context": 256,
    "windows": 4,
    "precision": "float32",
    "evaluation_precision": "float32",
}
MEASURED_RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "SDS": ("sds", {**TEXT, "base": "wanda", "adjust_steps": 1, "redense_steps": 1}),
    "GPTQ": ("dlqat", {**TEXT, "stages": "gptq", "sample_tokens": 0, "packed": False}),
    "DL-QAT": ("dlqat", {**TEXT, "steps": 2, "batch": 1, "sample_tokens": 0, "packed": False}),
}


def config_of(shape: tuple[Any, ...]) -> LlamaConfig:
    hidden, inner, layers, heads, groups, vocabulary, tied = shape
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
    )


def write_model(folder: Path, shape: tuple[Any, ...], has_weights: bool) -> str:
    """Save a model in bfloat16 with random weights, or with a file of the right size that takes no
    space on the disk. Returns the folder."""
    config, auto = config_of(shape), AutoModelForCausalLM
    torch.manual_seed(0)
    if has_weights:
        auto.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    else:
        with init_empty_weights():
            write_headers(auto.from_config(config, dtype=torch.bfloat16), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY_FOLDER / name, folder)
    return str(folder)


def write_headers(model: PreTrainedModel, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    header, end = dict[str, Any](), 0
    for name, tensor in model.named_parameters():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {
            "dtype": "BF16",
            "shape": [*tensor.shape],
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def expected(model: str, card_gb: int, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The estimate of a run on a GPU of this size, or the reason for its refusal."""
    card = Card(device="cuda:0", name="", uuid="", total_bytes=int(FREE * card_gb * 1e9))
    with (
        patch.object(cards, "report", lambda: CardReport(cards=(card,))),
        patch("jobs.submit.require_disk"),
    ):
        try:
            _, cost = check_and_estimate(kind, {**values, "model": model, "device": "cuda"})
        except SlimscopeError as error:
            return {"refused": f"{error.what} {error.why}"}
    products = sum(x.amount for x in cost.work if x.unit in ("float32", "bfloat16"))
    return {
        "card": cost.bytes,
        "disk": int(cost.disk.bytes) if cost.disk else 0,
        "flops": 2 * products,
        "streamed": any("read from disk" in warning for warning in cost.warnings),
    }


def table(root: Path) -> list[dict[str, Any]]:
    rows = []
    for size, shape in SHAPES.items():
        model = write_model(root / size.replace(" ", ""), shape, has_weights=False)
        for run, (kind, values) in RUNS.items():
            for card_gb in CARD_GB:
                row = expected(model, card_gb, kind, values)
                rows.append({"model": size, "run": run, "gpu_gb": card_gb, **row})
    return rows


def measured(root: Path, sizes: Sequence[str]) -> Iterator[dict[str, Any]]:
    for size in sizes:
        model = write_model(root / size.replace(" ", ""), MEASURED[size], has_weights=True)
        for run, (kind, values) in MEASURED_RUNS.items():
            config = {**values, "model": model, "threads": 1}
            config |= {"calibration_text": "toystories", "evaluation_text": "toystories"}
            _, cost = check_and_estimate(kind, config)
            job = finish(submit(kind, config, Actor("benchmark", "host")))
            peak = job.peak_bytes or math.nan
            parts = {name: size for name, size in cost.memory.items() if size}
            yield {"model": size, "run": run, "state": job.state, "peak": peak} | {
                "formula": cost.bytes,
                "ratio": round(cost.bytes / peak, 3),
                "parts": parts,
            }


def show(rows: list[dict[str, Any]]) -> None:
    printed = Table(*rows[0])
    for row in rows:
        cells = [
            readable_bytes(cell) if isinstance(cell, int) and cell > 10**6 else str(cell)
            for cell in row.values()
        ]
        printed.add_row(*cells)
    CONSOLE.print(printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs="+", choices=[*MEASURED], default=())
    sizes = parser.parse_args().measure
    upgrade()
    models = settings().root / "models"  # other folders may not be read
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models) as root:
        rows = [*measured(Path(root), sizes)] if sizes else table(Path(root))
    show(rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
