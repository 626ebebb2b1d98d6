"""Packed models are described and loaded as the dense models that they represent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from backend.export.formats import Layout
from backend.export.reading import DequantizedLinears, load_dequantized
from backend.export.writing import export
from backend.models.blocks import block_linears, decoder_blocks
from backend.models.families.stored import TensorHeader
from backend.models.loading import load
from backend.models.sources.catalog import inspect
from backend.models.sources.quantized import parse_layout, unpacked
from backend.quantization.grid import QuantizedWeight
from backend.quantization.plan import QuantSettings, embedding_search
from backend.quantization.range_search import quantize_embedding, search_range

LAYOUTS = [
    Layout("compressed-tensors", 3, 32, "symmetric"),
    Layout("compressed-tensors", 4, 0, "symmetric"),
    Layout("gptq", 4, 32, "symmetric"),
    Layout("gptq_v2", 4, 32, "zero-point"),
    Layout("slimscope", 3, 32, "offset"),
]


@pytest.fixture
def folder(data_dir: Path) -> Path:
    return data_dir / "models" / "packed"


def packed_toy(folder: Path, layout: Layout) -> dict[str, QuantizedWeight]:
    toy = load("toy")
    return pack(folder, toy.model, toy.tokenizer, layout)


def pack(
    folder: Path, model: PreTrainedModel, tokenizer: Any, layout: Layout
) -> dict[str, QuantizedWeight]:
    """Write a packed model; return its layers."""
    layers = dict[str, QuantizedWeight]()
    for block in range(len(decoder_blocks(model))):
        for linear in block_linears(model, block).values():
            W = linear.read()
            grid = search_range(W, layout.bits, layout.group_size, layout.grid, "minmax")
            grid = grid.stored(torch.float16, layout.grid)
            layers[linear.name] = QuantizedWeight(grid, grid.codes(W).byte())
    for other in layout.others:
        settings = QuantSettings(other.bits, 32, "symmetric", embedding_search(other.bits))
        for name in other.layers:
            weight = model.get_submodule(name).weight.detach()
            layers[name] = quantize_embedding(weight, settings, torch.float16)
    folder.mkdir(parents=True)
    export(model, tokenizer, layers, layout, torch.float16, folder, "")
    return layers


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_packed_model_is_known_and_unpacked_exactly(folder: Path, layout: Layout) -> None:
    layers = packed_toy(folder, layout)
    facts, toy = inspect(str(folder)), inspect("toy")
    assert facts.linears == toy.linears and facts.parameters == toy.parameters
    assert facts.quantized == f"{layout.format.removesuffix('_v2')}, {layout.bits} bits"
    model = load_dequantized(folder, torch.float32)
    reader = DequantizedLinears(folder, facts.matrices)
    read = {x.name: W for block in range(facts.blocks) for x, W in reader.block(block)}
    for name, layer in layers.items():
        assert torch.equal(model.get_parameter(f"{name}.weight"), layer.dense())
        assert torch.equal(read[name], layer.dense())


def test_a_row_that_ends_inside_a_word_has_the_inputs_its_file_says() -> None:
    packing = parse_layout("x", {"quantization_config": quantization("channel", None)})
    assert packing is not None
    headers = {
        "h.0.a.weight_packed": TensorHeader((8, 22), "I32"),  # 172 inputs of 4 bits, padded
        "h.0.a.weight_scale": TensorHeader((8, 1), "F16"),
        "h.0.a.weight_shape": TensorHeader((2,), "I64"),
    }
    assert unpacked("x", packing, {}, headers)["h.0.a.weight"].shape == (8, 176)
    shapes = {"h.0.a": (8, 172)}
    assert unpacked("x", packing, {}, headers, shapes)["h.0.a.weight"].shape == (8, 172)


def quantization(strategy: str, size: int | None) -> dict[str, object]:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": size,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
