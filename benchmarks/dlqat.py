"""DL-QAT beside its peers: a training step and its memory against peft's LoRA and DoRA of the same
rank, on the same layers and rows; decoding on packed weights against dense bfloat16; bytes written.

Times are processor time on one thread: what a quiet machine would take. Each way of training runs
in a process of its own, in turns; the model is random, of LLaMA's shape, with 25 million weights.

make bench-dlqat ARGS="--precision bfloat16 --rounds 5"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from backend.export.formats import Format, Layout, bits_per_weight
from backend.export.writing import layer_tensors
from backend.models.blocks import all_linears, to_bfloat16
from backend.quantization import GRID_NAMES, GridType
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.grid import QuantizedWeight
from backend.quantization.range_search import search_range
from benchmarks.decoding import quantized
from benchmarks.shared import memory
from benchmarks.shared.timing import decode_seconds
from jobs.evaluation.quality import decoders_of

WAYS = ("peft LoRA", "peft DoRA", "DL-QAT")
GROUP, VOCABULARY = 64, 4096
FORMATS: dict[GridType, Format] = {
    "symmetric": "compressed-tensors",
    "zero-point": "compressed-tensors",
    "offset": "slimscope",
}
SHAPES = {
    "25m": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 7,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "113m": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 9,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
}
BITS, SAMPLE = (2, 3, 4), (512, 1408)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rank", default=16, type=int)
    parser.add_argument("--rows", default=4, type=int)
    parser.add_argument("--length", default=256, type=int)
    parser.add_argument("--steps", default=4, type=int, help="timed in each round")
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--tokens", default=24, type=int, help="decoded in each round")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def build(size: str) -> PreTrainedModel:
    """A random model."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SHAPES[size])).eval()
    return model.requires_grad_(False)


# training -----------------------------------------------------------------------------------------


def prepared(model: PreTrainedModel, way: str, rank: int) -> nn.Module:
    """The model as it is trained that way; only what is trained requires a gradient."""
    found = all_linears(model)
    if way == "DL-QAT":
        for x in found:
            grid = search_range(x.read(), 3, GROUP, "symmetric", "minmax")
            layer = DLQATLinear(x.layer, grid, rank=rank, alpha=2.0 * rank)  # type: ignore[arg-type]
            model.set_submodule(x.name, layer)
        return model
    from peft import LoraConfig, get_peft_model

    names = sorted({x.module.rsplit(".", 1)[-1] for x in found})
    dora = way == "peft DoRA"
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, use_dora=dora)
    )


def stepper(model: nn.Module, asked: argparse.Namespace) -> Callable[[], None]:
    """One whole step of training: passes, clipped gradients, AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, weight_decay=0.0, fused=True)
    rows = torch.randint(VOCABULARY, (asked.rows, asked.length))
    half = asked.precision == "bfloat16"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss: Tensor = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(asked: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step and peak memory, of this process."""
    torch.set_num_threads(1)
    model = prepared(build("25m"), asked.way, asked.rank)
    step, seconds = stepper(model, asked), list[float]()
    step()  # warms up
    memory.forget_peak()
    for _ in range(asked.steps):
        begun = process_time()
        step()
        seconds.append(process_time() - begun)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"seconds": min(seconds), "peak": memory.peak(), "trained": trained}


def trained_apart(way: str) -> dict[str, float]:
    """What `train` finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dlqat", *sys.argv[1:], "--way", way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare_training(rounds: int) -> dict[str, dict[str, float]]:
    """Way -> median seconds and memory, and both over those of the two peers."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            runs[way].append(trained_apart(way))
    found = {
        way: {name: median(run[name] for run in of) for name in of[0]} for way, of in runs.items()
    }
    for way, figures in found.items():
        for peer in WAYS[:2]:
            pairs = zip(runs[way], runs[peer], strict=True)
            figures[f"of {peer}"] = median(a["seconds"] / b["seconds"] for a, b in pairs)
    return found


# decoding and bytes -------------------------------------------------------------------------------


def compare_decoding(tokens: int, rounds: int) -> dict[str, float]:
    """Tokens for each second of processor time, dense bfloat16 and packed with 4 bits."""
    dense = build("113m")
    packed = quantized(dense, 4)
    to_bfloat16(dense)
    decoders, _ = decoders_of([dense, packed])
    seconds = decode_seconds(decoders, list(range(64)), tokens, rounds)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    rates = [tokens / median(s) for s in seconds]
    return {"dense": rates[0], "packed": rates[1], "speed-up": median(ratios)}


def compare_bytes() -> dict[str, float]:
    """Bits and grid -> written bits for each weight over what they should be."""
    W, found = torch.randn(SAMPLE), {}
    for bits in BITS:
        for type in FORMATS:
            grid = search_range(W, bits, GROUP, type, "minmax")
            layer = QuantizedWeight(grid, grid.codes(W).to(torch.uint8))
            layout = Layout(FORMATS[type], bits, GROUP, type)
            tensors = layer_tensors(layer, layout, torch.float16).values()
            written = 8 * sum(t.numel() * t.element_size() for t in tensors) / W.numel()
            name = f"{bits} bits, {GRID_NAMES[type]}"
            found[name] = written / bits_per_weight(bits, GROUP, type, "float16")
    return found


def shown(training: dict[str, Any], decoding: dict[str, float], sizes: dict[str, float]) -> None:
    steps = Table("training", "CPU s a step", "of LoRA", "of DoRA", "peak MB", "trained")
    for way, f in training.items():
        steps.add_row(
            way,
            f"{f['seconds']:.3f}",
            f"{f['of peft LoRA']:.2f} ×",
            f"{f['of peft DoRA']:.2f} ×",
            f"{f['peak'] / 1e6:.0f}",
            f"{f['trained']:,.0f}",
        )
    decoded = Table("decoding", "tokens/CPU s")
    decoded.add_row("dense bfloat16", f"{decoding['dense']:.1f}")
    gain = decoding["speed-up"]
    decoded.add_row("packed, 4 bits", f"{decoding['packed']:.1f} ({gain:.2f} ×)")
    written = Table("written", "of bits a weight")
    for name, value in sizes.items():
        written.add_row(name, f"{value:.4f}")
    Console().print(steps, decoded, written)


def main() -> None:
    asked = arguments()
    if asked.way:
        print(json.dumps(train(asked)))
        return
    torch.set_num_threads(1)
    sizes = compare_bytes()
    decoding = compare_decoding(asked.tokens, asked.rounds)
    training = compare_training(asked.rounds)
    shown(training, decoding, sizes)
    print(json.dumps({"training": training, "decoding": decoding, "bytes": sizes}))


if __name__ == "__main__":
    main()
