"""A model that is never in memory at once: peak memory and time of a run on a streamed model.

Makes a LLaMA-like folder of random bfloat16 weights, then runs SDS (or its first pruning alone) in
a process of its own for each way to hold the weights, and compares what they end with.

make bench-streaming ARGS="--size 3b --ways streamed"
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from backend.models.sources.headers import INDEX
from backend.models.sources.spec import TOY_FOLDER
from backend.printable import readable_bytes
from benchmarks.shared import memory

SIZES = {  # as TinyLlama 1.1B and LLaMA 3.2 3B, the latter with fewer words
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
    },
}
VOCABULARY, WORDS = 32000, 512  # all, and those that the text is made of


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1b", choices=[*SIZES])
    parser.add_argument("--ways", nargs="+", default=["streamed", "memory"])
    parser.add_argument("--until", default="first", choices=["first", "sds"])
    parser.add_argument("--activations", default="disk", choices=["memory", "disk"])
    parser.add_argument("--segments", default=4, type=int)
    parser.add_argument("--context", default=256, type=int)
    parser.add_argument("--folder", type=Path, help="where to build the model; kept")
    parser.add_argument("--child", choices=["streamed", "memory"], help=argparse.SUPPRESS)
    return parser.parse_args()


def build(folder: Path, size: str) -> int:
    """Write the model, a file for each block; returns its number of weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        **SIZES[size],
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY_FOLDER / name, folder)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(config).named_parameters()}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        part = name.split(".")[2] if ".layers." in name else "outside"
        parts.setdefault(f"model-{part}.safetensors", []).append(name)
    for number, (file, names) in enumerate(parts.items()):
        random = torch.Generator().manual_seed(number)
        save_file({n: weight(shapes[n], random) for n in names}, folder / file, {"format": "pt"})
    places = {name: file for file, names in parts.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sum(shape.numel() for shape in shapes.values())


def weight(shape: torch.Size, random: torch.Generator) -> torch.Tensor:
    """Ones for a norm, else as a model is initialised."""
    values = torch.randn(shape, generator=random) * 0.02 if len(shape) > 1 else torch.ones(shape)
    return values.to(torch.bfloat16)


def work(chosen: argparse.Namespace) -> None:
    """One run; prints its figures as the last line."""
    from backend.checkpoints import Checkpoints
    from backend.evaluation.perplexity import window_nlls
    from backend.models.block_forward import batches_in
    from backend.models.loading import load, weights_hash
    from backend.models.memory import memory_available
    from backend.models.saving import save
    from backend.models.sources.catalogue import inspect
    from backend.pruning.plan import pruning_plan
    from backend.pruning.sds import run_sds
    from backend.reporter import SilentReporter
    from jobs.sds.kind import SDSJob
    from jobs.sds.kind import memory_bytes as needed

    torch.set_num_threads(1)
    figures: dict[str, float | str] = {"before": memory.peak()}
    random, words = torch.Generator().manual_seed(0), (chosen.segments, chosen.context)
    rows = torch.randint(WORDS, words, generator=random)
    config = SDSJob.model_validate(
        {
            "model": str(chosen.folder),
            "weights": chosen.child,
            "until": chosen.until,
            "segments": chosen.segments,
            "context": chosen.context,
            "control": False,
            "adjust": "off",
            "redense_steps": 1,
            "batch": 1,
            "activations": chosen.activations,
        }
    )
    _, parts = needed(config, inspect(config.model), memory_available())
    figures["estimate"] = sum(parts.values())
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        folder, start = Path(scratch), time.process_time()
        loaded = load(config.model, streamed=chosen.child == "streamed")
        figures["loaded"] = memory.peak()
        plan, checkpoints = pruning_plan(config, loaded.facts.linears), Checkpoints(folder / "work")
        run_sds(loaded.model, rows, config, plan, checkpoints, SilentReporter())
        figures["pruned"] = memory.peak()
        new = batches_in(folder / "states" if chosen.activations == "disk" else None)
        loss = window_nlls(loaded.model, rows, 1, SilentReporter(), new).mean().item()
        figures["loss"], figures["hash"] = loss, weights_hash(loaded.model)
        save(loaded.model, loaded.tokenizer, folder / "model", "")
        figures["saved"], figures["seconds"] = memory.peak(), time.process_time() - start
    print(json.dumps(figures))


def run(chosen: argparse.Namespace, way: str) -> dict[str, float | str]:
    """The figures of a run in a process of its own."""
    options = [*sys.argv[1:], "--folder", str(chosen.folder), "--child", way]
    environment = {**os.environ, "SLIMSCOPE_MODEL_DIRS": json.dumps([str(chosen.folder)])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.streaming", *options],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    chosen = arguments()
    if chosen.child:
        work(chosen)
        return
    with tempfile.TemporaryDirectory() as scratch:
        chosen.folder = (chosen.folder or Path(scratch) / "model").resolve()
        weights = build(chosen.folder, chosen.size)
        found = {way: run(chosen, way) for way in chosen.ways}
    table = Table("weights", "peak", "runtime", "estimate", "CPU s", "loss", "sha256")
    for way, figures in found.items():
        memories = (
            readable_bytes(float(figures[name])) for name in ("saved", "before", "estimate")
        )
        seconds, loss = f"{figures['seconds']:.0f}", f"{figures['loss']:.4f}"
        table.add_row(way, *memories, seconds, loss, str(figures["hash"])[:12])
    sizes = f"bfloat16 {readable_bytes(2 * weights)}, float32 {readable_bytes(4 * weights)}"
    Console().print(f"{weights / 1e9:.2f} billion weights: {sizes}", table)
    print(json.dumps({"weights": weights, **found}))


if __name__ == "__main__":
    main()
