"""Sizes of what is saved, and what a quantised embedding and head cost.

    make bench-exports.sizes                                     SmolLM2 and three shapes
    make bench-exports.sizes ARGS="--perplexity smollm2-135m"    an embedding in 8, 6 and 4 bits

Files are written, with random codes: sizes alone are measured. `predicted` is what the form says
before the work (`backend/export/sizes.py`). The perplexities are of the model with its linear
layers as they are; ratios to it have a paired 95 % interval over the same windows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase, Qwen2Config

from backend.evaluation.perplexity import perplexity
from backend.export.formats import layout_of
from backend.export.gguf.types import EmbeddingType, carried_type, embedding_type, fitting
from backend.export.gguf.writing import write_gguf
from backend.export.sizes import dense_bytes, gguf_bytes, quantized_bytes
from backend.export.writing import export
from backend.models.blocks import swap_weights
from backend.models.facts import ModelFacts
from backend.models.loading import load
from backend.models.saving import save
from backend.models.sources.catalogue import inspect
from backend.quantization.config import DLQATConfig
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.quantization.plan import QuantizationPlan, QuantSettings, plan
from backend.quantization.range_search import quantize_embedding
from backend.reporter import SilentReporter
from backend.settings import settings
from backend.statistics.paired import paired_ratio
from backend.text.slices import evaluation_slice

SHAPES: dict[str, Any] = {
    "Qwen2.5-0.5B, untied": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
    "SmolLM2-360M, untied": LlamaConfig(
        vocab_size=49152,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
    "Gemma-3-270M as LLaMA, untied": LlamaConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
}
CASES: tuple[tuple[str, int], ...] = (  # format, bits of embedding and head
    ("compressed-tensors", 0),
    ("compressed-tensors", 8),
    ("compressed-tensors", 4),
    ("gptq", 0),
    ("slimscope", 8),
    ("slimscope", 6),
    ("slimscope", 4),
)
PLAIN: tuple[tuple[str, EmbeddingType], ...] = (("F16", "auto"), ("Q8_0", "auto"), ("Q4_0", "auto"))
BITS, GROUP = 4, 64
WINDOWS, CONTEXT = 8, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--perplexity", metavar="MODEL", help="cost of its quantised embedding")
    parser.add_argument("--only", default="", help="models whose name has this")
    options = parser.parse_args()
    named = [name for name in ("smollm2-135m", *SHAPES) if options.only in name]
    found = embedding_costs(options.perplexity) if options.perplexity else chain(*map(sizes, named))
    rows = []
    for row in found:
        rows.append(row)
        print(*row.values(), sep=" | ", flush=True)
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=150).print(table)
    print(json.dumps(rows))


def sizes(name: str) -> Iterator[dict[str, Any]]:
    """One row a file, in MB."""
    model, tokenizer = _model(name)
    readable = settings().root / "models"
    readable.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=readable) as scratch:
        dense = Path(scratch) / "dense"
        save(model, tokenizer, dense, "", torch.float16)
        facts = inspect(str(dense))
        yield _row(name, "dense, float16", "as the layers", dense_bytes(facts), _weights(dense))
        for type, embedding in PLAIN:
            file = Path(scratch) / "plain.gguf"
            write_gguf(dense, file, type, False, name, SilentReporter(), embedding)
            stored = embedding_type(embedding, type, False, "float16")
            predicted = gguf_bytes(facts, type, stored)
            yield _row(name, f"GGUF {type}", stored, predicted, file.stat().st_size)
        for format, bits in CASES:
            yield from _packed(name, facts, model, tokenizer, format, bits, Path(scratch))


def _packed(
    name: str,
    facts: ModelFacts,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    format: Any,
    bits: int,
    scratch: Path,
) -> Iterator[dict[str, Any]]:
    """A folder of random codes in a format, and the GGUF file made of it."""
    outside = facts.embeddings
    if format == "compressed-tensors" and bits not in (0, BITS):
        outside = outside[1:]  # what transformers reads
        if not outside:
            return
    made = plan(DLQATConfig(bits=BITS, group_size=GROUP), facts, format, outside, bits)
    layers, layout = random_codes(made, facts), layout_of(made, format)
    with TemporaryDirectory(dir=scratch) as place:
        folder, file = Path(place) / "model", Path(place) / "it.gguf"
        folder.mkdir()
        export(model, tokenizer, layers, layout, torch.float16, folder, "")
        predicted = quantized_bytes(facts, made, format, "float16")
        told = f"{bits} bits" if bits else "float16"
        if bits and len(outside) < len(facts.embeddings):
            told = f"float16, head {told}"
        yield _row(name, f"{format}, {BITS} bits", told, predicted, _weights(folder))
        write_gguf(folder, file, "Q4_0", True, name, SilentReporter())
        stored = "F16"
        if made.embedding:
            stored = carried_type("Q4_0", layout.of(outside[0].name), outside[0].columns)
        predicted = gguf_bytes(facts, "Q4_0", fitting(stored, facts.hidden))
        if len(outside) < len(facts.embeddings):
            predicted = 0
        yield _row(name, f"GGUF Q4_0 of {format}", told, predicted, file.stat().st_size)


def random_codes(made: QuantizationPlan, facts: ModelFacts) -> dict[str, QuantizedWeight]:
    """Codes and scales at random, in the shapes of a plan."""
    planned = {**made.layers}
    if made.embedding:
        planned |= dict.fromkeys(made.embedding.layers, made.embedding)
    return {
        x.name: _random(x.rows, x.columns, of)
        for x in (*facts.linears, *facts.embeddings)
        if (of := planned.get(x.name))
    }


def _random(rows: int, columns: int, of: QuantSettings) -> QuantizedWeight:
    codes = torch.randint(0, 2**of.bits, (rows, columns), dtype=torch.uint8)
    scale = torch.full((rows, columns // of.group_size), 2.0**-8)
    return QuantizedWeight(
        QuantGrid(of.bits, scale, torch.full_like(scale, 2 ** (of.bits - 1))), codes
    )


def _model(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A real model, or zeros in the shape of one with the tokenizer of SmolLM2."""
    real = load("smollm2-135m")
    if name not in SHAPES:
        return real.model.half(), real.tokenizer
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(SHAPES[name], dtype=torch.float16)
    return model.to_empty(device="cpu").apply(_zero), real.tokenizer


def _zero(module: torch.nn.Module) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.data.zero_()


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _row(name: str, file: str, embedding: str, predicted: int, saved: int) -> dict[str, Any]:
    return {
        "model": name,
        "file": file,
        "embedding and head": embedding,
        "predicted, MB": round(predicted / 1e6, 1) or "",
        "saved, MB": round(saved / 1e6, 1),
    }


def embedding_costs(spec: str) -> Iterator[dict[str, Any]]:
    """Perplexities with the embedding and head in several grids: both, and each alone, for which a
    tied head becomes one of its own."""
    loaded = load(spec, dtype=torch.float32)
    text = evaluation_slice(loaded.facts.default_text, loaded.tokenizer, WINDOWS, CONTEXT)
    dense = perplexity(loaded.model, text, 4)
    yield {
        "rounded": "nothing",
        "to": "",
        "error": 0.0,
        "perplexity": dense.value,
        "ratio": 1.0,
        "95 %": "",
    }
    names = [x.name for x in loaded.facts.embeddings]
    head = loaded.model.get_output_embeddings()
    alone = {"head": [n for n, module in loaded.model.named_modules() if module is head]}
    alone["embedding"] = [names[0]]
    for bits, search in ((8, "minmax"), (6, "minmax"), (4, "minmax"), (4, "mse"), (6, "mse")):
        of = QuantSettings(bits, 32, "symmetric", search)
        yield {"rounded": "both"} | _cost(loaded.model, text, names, of, dense)
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    for what, bits in product(alone, (8, 6, 4)):
        of = QuantSettings(bits, 32, "symmetric", "mse")
        yield {"rounded": what} | _cost(loaded.model, text, alone[what], of, dense)


def _cost(
    model: Any, text: Any, names: Sequence[str], of: QuantSettings, dense: Any
) -> dict[str, Any]:
    weights = {n: model.get_submodule(n).get_parameter("weight") for n in names}
    layers = {n: quantize_embedding(W.detach(), of, torch.float16) for n, W in weights.items()}
    errors = [
        float((x.dense() - (W := weights[n].detach())).norm() / W.norm()) for n, x in layers.items()
    ]
    with swap_weights({weights[n]: layer.dense() for n, layer in layers.items()}):
        found = perplexity(model, text, 4)
    ratio = paired_ratio(found.windows, dense.windows)
    assert ratio is not None
    return {
        "to": f"{of.bits} bits, {of.space}",
        "error": max(errors),
        "perplexity": found.value,
        "ratio": ratio.value,
        "95 %": f"{ratio.low:.4f} to {ratio.high:.4f}",
    }


if __name__ == "__main__":
    main()
